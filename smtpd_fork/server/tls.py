"""The TLS context of a server, from its files."""

from __future__ import annotations

import ssl

from smtpd_fork.errors import ConfigError

__all__ = ["load_tls"]


def load_tls(cert: str, key: str | None) -> ssl.SSLContext:
    """Return a server's context with the certificate chain in *cert* and its key in *key*.

    :raises ConfigError: a file cannot be read, holds no such thing, or the two do not match
    """
    # Python's defaults for servers: TLS 1.2 and newer, no compression, no renegotiation.
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    files = cert if key is None else f"{cert}, {key}"
    try:
        # Without a callback OpenSSL would ask for an encrypted key's password on the terminal.
        context.load_cert_chain(cert, key, password=_no_password)
    except ssl.SSLError as error:
        reason = error.reason or "no PEM certificate and key in there"
        raise ConfigError(f"cannot use the TLS files {files}: {reason}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(f"cannot use the TLS files {files}: {reason}") from None
    return context


def _no_password() -> str:
    raise ValueError("the key is encrypted; give one without a password")
