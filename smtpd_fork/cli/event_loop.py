"""The event loop of the daemon, its garbage collection, and exceptions that nothing handles.

These settings apply to the whole process, which belongs to the daemon.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

__all__ = ["collect_garbage_rarely", "log_unraisable", "loop_factory", "run_until_complete"]

log = logging.getLogger("smtpd_fork.daemon")

_GC_THRESHOLDS = (20_000, 20, 20)
"""Arguments of :func:`gc.set_threshold`; the default would run it every few dozen sessions."""


def run_until_complete(
    loop: asyncio.AbstractEventLoop,
    main: Coroutine[Any, Any, int],
    listen_again: Callable[[], object],
) -> int:
    """Run *main*. If a task or callback of a handler calls sys.exit(), only that task ends.

    asyncio raises SystemExit and KeyboardInterrupt of any task out of the loop. Signals are not
    raised as KeyboardInterrupt here, as they have handlers.

    :param listen_again: called in the loop each time it was started again, as it has then replaced
        the descriptor that gets the signals
    """
    task = loop.create_task(main)
    while True:
        try:
            return loop.run_until_complete(task)
        except (SystemExit, KeyboardInterrupt):
            if task.done():
                raise
            log.exception("a task or callback of a handler tried to end the process")
            loop.call_soon(listen_again)


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """Return the function that creates the event loop of ``--loop``."""
    if name == "uvloop":
        import uvloop  # noqa: PLC0415 - not needed with asyncio

        return uvloop.new_event_loop
    return asyncio.new_event_loop


def collect_garbage_rarely() -> None:
    """Run the garbage collector less often, as sessions leave no reference cycles.

    Objects that exist now are never examined again.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)


def log_unraisable(unraisable: UnraisableHookArgs, /) -> None:
    """Log an exception that Python cannot raise (:data:`sys.unraisablehook`).

    Its default goes to stderr, which a daemon may not have. Clients can cause such exceptions: if
    the name in SNI is not ASCII, :mod:`ssl` reports it as an error of the callback, in three lines
    each time. The handshake fails, as it should, and is logged like any other failure.
    """
    error = unraisable.exc_value
    if isinstance(error, UnicodeDecodeError) and isinstance(unraisable.object, bytes):
        log.debug("the server name (SNI) of a TLS client is not ASCII")
        return
    message = unraisable.err_msg or "Exception ignored in"
    log.error("%s %r", message, unraisable.object, exc_info=error)
