"""TLS contexts that verify the certificates of servers."""

from __future__ import annotations

import ssl
from pathlib import Path

from smtpd_fork.errors import CannotCreateError

__all__ = ["absolute", "tls_context"]


def tls_context(ca_file: str | None) -> ssl.SSLContext:
    """Return a context that verifies a server's certificate. Blocks: it reads the CA certificates.

    :param ca_file: file of CA certificates; None: the system's
    :raises CannotCreateError: the file cannot be read
    """
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise CannotCreateError(f"ca-file {ca_file}: {error}") from None


def absolute(path: str | None) -> str | None:
    """Return an absolute path, because a daemon changes its working directory to / later."""
    return None if path is None else str(Path(path).expanduser().absolute())
