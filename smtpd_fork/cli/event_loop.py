"""The event loop of the daemon, garbage collection, and errors that cannot be raised.

The process is ours, so these are ours to choose.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

__all__ = ["collect_garbage_rarely", "log_unraisable", "loop_factory", "run_to_its_end"]

log = logging.getLogger("smtpd_fork.daemon")

_GC_THRESHOLDS = (20_000, 20, 20)
"""Of :func:`gc.set_threshold`; by default it would look at every few dozen sessions."""


def run_to_its_end(
    loop: asyncio.AbstractEventLoop,
    main: Coroutine[Any, Any, int],
    listen_again: Callable[[], object],
) -> int:
    """Run *main*; a task or callback of a handler that calls sys.exit() ends only itself.

    asyncio lets SystemExit and KeyboardInterrupt of any task out of the loop. Signals never come
    as KeyboardInterrupt here: they have handlers.

    :param listen_again: called in the loop, which has made itself the first to hear of signals
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
    """Return what makes the event loop that ``--loop`` names."""
    if name == "uvloop":
        import uvloop  # noqa: PLC0415 - who chose asyncio need not load it

        return uvloop.new_event_loop
    return asyncio.new_event_loop


def collect_garbage_rarely() -> None:
    """Have Python look for cycles less often: sessions leave none.

    What was made until now stays for good and is never looked at again.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)


def log_unraisable(unraisable: UnraisableHookArgs, /) -> None:
    """Log what Python cannot raise (:data:`sys.unraisablehook`): a daemon may have no stderr.

    A client can bring it about: :mod:`ssl` takes a server's name (SNI) that is not ASCII for a
    fault of the callback that would be given it, and says so in three lines each time. The
    handshake fails, as it should, and is logged as any other that does.
    """
    error = unraisable.exc_value
    if isinstance(error, UnicodeDecodeError) and isinstance(unraisable.object, bytes):
        log.debug("a TLS client asks for a name that is not ASCII")
        return
    what = unraisable.err_msg or "Exception ignored in"
    log.error("%s %r", what, unraisable.object, exc_info=error)
