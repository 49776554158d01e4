"""TlsFiles: the files of the TLS settings, and the context that is made of them."""

from __future__ import annotations

import os
import pwd
import ssl
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from smtpd_fork.errors import ConfigError
from smtpd_fork.server.tls.certificate import Certificate, read_certificate
from smtpd_fork.server.tls.resumption import restrict_resumption
from smtpd_fork.server.tls.sni import choose_by_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smtpd_fork.config import Config

__all__ = ["LoadedTls", "Signature", "TlsFiles"]

MAX_FILE_SIZE = 1 << 20
"""Bytes; a chain has some thousands, all authorities of a browser a quarter of this."""

ATTEMPTS = 3
"""How often files are read that change meanwhile; a renewal is over in a moment."""

_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}

Signature = tuple[tuple[int, ...], ...]
"""What tells the files, as they are, from what they were: see :meth:`TlsFiles.signature`."""


@dataclass(frozen=True, slots=True)
class LoadedTls:
    """What was made of the files.

    :ivar context: for handshakes; by name it changes to others that it knows
    :ivar certificates: in the order of the settings
    :ivar warnings: what can be, and is likely not meant
    :ivar signature: of the files that were read
    """

    context: ssl.SSLContext
    certificates: tuple[Certificate, ...]
    warnings: tuple[str, ...]
    signature: Signature


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """The files of the TLS settings, and what is wanted of them.

    The paths are absolute: a detached daemon is in another directory when it reads them again.

    :ivar pairs: of each certificate its file, and its key's; None if that is in the same one
    :ivar client_ca: of the authorities that clients' certificates are verified against
    :ivar client_verify: whether clients must have one
    :ivar min_version: the oldest TLS that is spoken
    """

    pairs: tuple[tuple[Path, Path | None], ...]
    client_ca: Path | None = None
    client_verify: bool = False
    min_version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2

    @classmethod
    def of(cls, config: Config) -> Self | None:
        """Return the files that *config* names; None if it names no certificate."""
        if not config.tls_cert:
            return None
        keys: Sequence[str | None] = config.tls_key or [None] * len(config.tls_cert)
        return cls(
            tuple(
                (Path(cert).absolute(), Path(key).absolute() if key is not None else None)
                for cert, key in zip(config.tls_cert, keys, strict=True)
            ),
            Path(config.tls_client_ca).absolute() if config.tls_client_ca is not None else None,
            config.tls_client_verify == "require",
            _VERSIONS[config.tls_min_version],
        )

    @property
    def paths(self) -> list[Path]:
        """All the files."""
        named = [path for pair in self.pairs for path in pair]
        return [path for path in [*named, self.client_ca] if path is not None]

    def signature(self) -> Signature:
        """Return what changes with the files: by stat(2), which follows symbolic links.

        So a link that is put in place of another is a change, however deep in the path it is:
        certbot renews that way, and Kubernetes.
        """
        return tuple(_signature(path) for path in self.paths)

    def load(self) -> LoadedTls:
        """Read the files, all of one time: what changes meanwhile is read anew.

        :raises ConfigError: one cannot be read, holds no such thing, or key and certificate do not
            match
        """
        for _ in range(ATTEMPTS):
            before = self.signature()
            try:
                context, certificates, warnings = self._load()
            except ConfigError:
                if self.signature() == before:
                    raise
            else:
                if self.signature() == before:
                    return LoadedTls(context, certificates, warnings, before)
        raise ConfigError(f"cannot use the TLS files {self}: they change while they are read")

    def _load(self) -> tuple[ssl.SSLContext, tuple[Certificate, ...], tuple[str, ...]]:
        contexts: list[ssl.SSLContext] = []
        certificates: list[Certificate] = []
        for cert, key in self.pairs:
            pem = _read(cert)
            if key is not None:
                _read(key)
            contexts.append(self._context(cert, key))
            certificates.append(read_certificate(cert, pem))
        warnings = choose_by_name(contexts, certificates)
        return contexts[0], tuple(certificates), warnings

    def _context(self, cert: Path, key: Path | None) -> ssl.SSLContext:
        # Python's defaults for servers: no compression, no old ciphers.
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        # A client could have the server do the dear part of a handshake again and again.
        context.options |= ssl.OP_NO_RENEGOTIATION
        context.minimum_version = self.min_version
        context.num_tickets = 1  # OpenSSL sends two; each resumption brings a new one
        files = f"{cert}" if key is None else f"{cert}, {key}"
        try:
            # Without a callback OpenSSL would ask for an encrypted key's password on the terminal.
            context.load_cert_chain(cert, key, password=_no_password)
        except (OSError, ValueError) as error:  # SSLError is an OSError
            raise _unusable(files, error, "no PEM certificate and key in there") from None
        if self.client_ca is not None:
            _read(self.client_ca)
            try:
                context.load_verify_locations(self.client_ca)
            except (OSError, ValueError) as error:
                raise _unusable(f"{self.client_ca}", error, "no PEM certificates there") from None
            context.verify_mode = ssl.CERT_REQUIRED if self.client_verify else ssl.CERT_OPTIONAL
            restrict_resumption(context)
        return context

    def unreadable(self) -> list[str]:
        """Return why files could not be read again, as the user that this process is now."""
        reasons = []
        for path in dict.fromkeys(self.paths):
            try:
                os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
            except OSError as error:
                reasons.append(_why(path, error))
        return reasons

    def __str__(self) -> str:
        return ", ".join(str(path) for path in self.paths)


def _signature(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except OSError as error:
        return (error.errno or 0,)
    return (
        *(status.st_dev, status.st_ino, status.st_size),
        *(status.st_mtime_ns, status.st_ctime_ns),
    )


def _read(path: Path) -> bytes:
    """Return what is in a file that a certificate or key can be in.

    :raises ConfigError: it cannot be read, is no file, or too large
    """
    try:
        # Not blocking: a named pipe would have the server wait for who writes into it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ConfigError(f"cannot use the TLS file {path}: it is no regular file")
            with open(descriptor, "rb", closefd=False) as file:
                content = file.read(MAX_FILE_SIZE + 1)
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot use the TLS files: {_why(path, error)}") from None
    if len(content) > MAX_FILE_SIZE:
        reason = f"it has more than {MAX_FILE_SIZE} bytes"
        raise ConfigError(f"cannot use the TLS file {path}: {reason}")
    return content


def _why(path: Path, error: OSError | ValueError) -> str:
    """Return why a file cannot be read; of a want of rights, whose."""
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    if isinstance(error, PermissionError):
        return f"{path}: {reason} (for the user {_user()})"
    return f"{path}: {reason}"


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _unusable(files: str, error: OSError | ValueError, otherwise: str) -> ConfigError:
    if isinstance(error, ssl.SSLError):
        reason = error.reason or otherwise
    else:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return ConfigError(f"cannot use the TLS files {files}: {reason}")


def _no_password() -> str:
    raise ValueError("the key is encrypted; give one without a password")
