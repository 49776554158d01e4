"""TlsFiles: the files of the TLS settings, and the SSL context that is created from them."""

from __future__ import annotations

import os
import re
import ssl
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from smtpd_fork.errors import ConfigError
from smtpd_fork.safe_open import user_name
from smtpd_fork.server.tls.certificate import Certificate, read_certificate
from smtpd_fork.server.tls.resumption import restrict_resumption
from smtpd_fork.server.tls.sni import choose_by_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smtpd_fork.config import Config

__all__ = ["LoadedTls", "Signature", "TlsFiles", "file_signature"]

MAX_FILE_SIZE = 1 << 20
"""Maximum bytes of a file. A certificate chain has a few thousand; all CA certificates of a browser
have a quarter of this limit."""

ATTEMPTS = 3
"""Maximum number of attempts to read files that change meanwhile; a renewal takes a moment."""

_CERTIFICATE = re.compile(rb"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----")
_KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----")

_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}

Signature = tuple[tuple[int, ...], ...]
"""State of the files, to detect changes: see :meth:`TlsFiles.signature`."""


@dataclass(frozen=True, slots=True)
class LoadedTls:
    """The objects that were created from the files.

    :ivar context: context for handshakes; it selects the context of another certificate by SNI
    :ivar certificates: in the order of the settings
    :ivar warnings: texts about settings that are valid, but probably not intended
    :ivar signature: state of the files when they were read
    """

    context: ssl.SSLContext
    certificates: tuple[Certificate, ...]
    warnings: tuple[str, ...]
    signature: Signature


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """The files of the TLS settings, and the settings of the context.

    The paths are absolute, as a detached daemon has another current directory when it reads the
    files again.

    :ivar pairs: for each certificate, its file and the file of its key; None: the same file
    :ivar client_ca: file of the CA certificates for verifying client certificates
    :ivar client_verify: whether clients must have a certificate
    :ivar min_version: minimum TLS version
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
        """Return the state of the files by stat(2), which changes when the files change.

        stat(2) follows symbolic links, so a replaced link anywhere in a path is detected as well:
        certbot and Kubernetes renew certificates in that way.
        """
        return tuple(file_signature(path) for path in self.paths)

    def load(self) -> LoadedTls:
        """Read the files in a consistent state: read them again if one changes meanwhile.

        :raises ConfigError: a file cannot be read or has no certificate or key, or a key does not
            belong to its certificate
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
        # Python's defaults for servers disable compression and old ciphers.
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        # With renegotiation, a client could repeat the expensive part of a handshake without limit.
        context.options |= ssl.OP_NO_RENEGOTIATION
        context.minimum_version = self.min_version
        context.num_tickets = 1  # OpenSSL's default is 2; each resumption provides a new ticket
        files = f"{cert}" if key is None else f"{cert}, {key}"
        try:
            # Without a callback OpenSSL would ask for an encrypted key's password on the terminal.
            context.load_cert_chain(cert, key, password=_no_password)
        except (OSError, ValueError) as error:  # SSLError is an OSError
            raise _unusable(files, error, _explain_mismatch(cert, key, error)) from None
        if self.client_ca is not None:
            _read(self.client_ca)
            try:
                context.load_verify_locations(self.client_ca)
            except (OSError, ValueError) as error:
                reason = f"{self.client_ca} has no PEM certificate"
                raise _unusable(f"{self.client_ca}", error, reason) from None
            context.verify_mode = ssl.CERT_REQUIRED if self.client_verify else ssl.CERT_OPTIONAL
            restrict_resumption(context)
        return context

    def unreadable(self) -> list[str]:
        """Return the reasons why the current user of the process cannot read the files again."""
        reasons = []
        for path in dict.fromkeys(self.paths):
            try:
                os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
            except OSError as error:
                reasons.append(_reason(path, error))
        return reasons

    def __str__(self) -> str:
        return ", ".join(str(path) for path in self.paths)


def file_signature(path: Path) -> tuple[int, ...]:
    """Return the state of a file by stat(2), which changes when the file changes.

    If stat(2) fails, the state is the error number.
    """
    try:
        status = path.stat()
    except OSError as error:
        return (error.errno or 0,)
    return (
        *(status.st_dev, status.st_ino, status.st_size),
        *(status.st_mtime_ns, status.st_ctime_ns),
    )


def _read(path: Path) -> bytes:
    """Return the content of a certificate or key file.

    :raises ConfigError: it cannot be read, is not a regular file, or is too large
    """
    try:
        # O_NONBLOCK, as open(2) of a named pipe would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ConfigError(f"cannot use the TLS file {path}: it is not a regular file")
            with open(descriptor, "rb", closefd=False) as file:
                content = file.read(MAX_FILE_SIZE + 1)
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot use the TLS files: {_reason(path, error)}") from None
    if len(content) > MAX_FILE_SIZE:
        reason = f"it has more than {MAX_FILE_SIZE} bytes"
        raise ConfigError(f"cannot use the TLS file {path}: {reason}")
    return content


def _reason(path: Path, error: OSError | ValueError) -> str:
    """Return why a file cannot be read, with the user's name if permissions are missing."""
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    if isinstance(error, PermissionError):
        return f"{path}: {reason} (for the user {user_name()})"
    return f"{path}: {reason}"


def _unusable(files: str, error: OSError | ValueError, otherwise: str) -> ConfigError:
    if isinstance(error, ssl.SSLError):
        reason = error.reason or ""
        if reason in {"", "KEY_VALUES_MISMATCH", "NO_CERTIFICATE_OR_CRL_FOUND"}:
            reason = otherwise
    else:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return ConfigError(f"cannot use the TLS files {files}: {reason}")


def _explain_mismatch(cert: Path, key: Path | None, error: OSError | ValueError) -> str:
    """Return why certificate and key do not match, as OpenSSL's messages are not helpful."""
    if getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
        return f"{key or cert} is not the key of {cert}"
    if not _CERTIFICATE.search(_read(cert)):
        return f"{cert} has no PEM certificate"
    if not _KEY.search(_read(key or cert)):
        return f"{key or cert} has no private key" + ("" if key else "; give --tls-key")
    return "there is no valid PEM certificate and key"


def _no_password() -> str:
    raise ValueError("the key is encrypted; give one without a password")
