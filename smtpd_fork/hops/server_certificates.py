"""What the certificate of a server is verified with."""

from __future__ import annotations

import ssl
from pathlib import Path

from smtpd_fork.errors import CannotCreateError

__all__ = ["absolute", "tls_context"]


def tls_context(ca_file: str | None) -> ssl.SSLContext:
    """Return what verifies a server. Blocks: certificates are read.

    :param ca_file: certificates of CAs; None: the system's
    :raises CannotCreateError: the file cannot be read
    """
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise CannotCreateError(f"ca-file {ca_file}: {error}") from None


def absolute(path: str | None) -> str | None:
    """Return a path as it is now: a daemon's working directory becomes / later."""
    return None if path is None else str(Path(path).expanduser().absolute())
