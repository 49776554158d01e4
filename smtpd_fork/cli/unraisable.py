"""What Python cannot raise, and would print to a stderr that a daemon may not have."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

__all__ = ["log_unraisable"]

log = logging.getLogger("smtpd_fork.daemon")


def log_unraisable() -> None:
    """Have it logged (:data:`sys.unraisablehook`). The process is ours, so this is ours to do.

    A client can bring it about: :mod:`ssl` takes a server's name (SNI) that is not ASCII for a
    fault of the callback that would be given it, and says so in three lines each time. The
    handshake fails, as it should, and is logged as any other that does.
    """
    sys.unraisablehook = _log


def _log(unraisable: UnraisableHookArgs, /) -> None:
    error = unraisable.exc_value
    if isinstance(error, UnicodeDecodeError) and isinstance(unraisable.object, bytes):
        log.debug("a TLS client asks for a name that is not ASCII")
        return
    what = unraisable.err_msg or "Exception ignored in"
    log.error("%s %r", what, unraisable.object, exc_info=error)
