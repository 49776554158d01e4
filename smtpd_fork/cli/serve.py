"""Serving: the loop, and the signals that end it."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
from typing import TYPE_CHECKING

from smtpd_fork.errors import SmtpdForkError

if TYPE_CHECKING:
    from collections.abc import Callable

    from smtpd_fork.server import Server

__all__ = ["serve"]

log = logging.getLogger("smtpd_fork.daemon")

_GC_THRESHOLDS = (20_000, 20, 20)
"""Of :func:`gc.set_threshold`; by default it would look at every few dozen sessions."""

_STOP = (signal.SIGTERM, signal.SIGINT)


def serve(server: Server, *, loop: str, ready: Callable[[], None] | None) -> None:
    """Run *server* until SIGTERM or SIGINT; a second one stops at once.

    :param loop: ``uvloop`` or ``asyncio``
    :param ready: called once it serves
    :raises SmtpdForkError: it cannot start
    """
    with asyncio.Runner(loop_factory=_loop_factory(loop)) as runner:
        runner.run(_serve(server, ready))


def _loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    if name == "uvloop":
        import uvloop  # noqa: PLC0415 - who chose asyncio need not load it

        return uvloop.new_event_loop
    return asyncio.new_event_loop


def _rarely_collect_garbage() -> None:
    """Have Python look for cycles less often: sessions leave none.

    What was made until now stays for good and is never looked at again. The process is ours, so
    this is ours to decide; an embedder's is not.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)


class Reloads:
    """SIGHUP: the files of the lists are read again, one time after another.

    :param server: whose they are
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._asked = False
        self._task: asyncio.Task[None] | None = None

    def ask(self) -> None:
        """Have it done; a second time while it is done is done after it, and a third with that."""
        self._asked = True
        if self._task is None:
            self._task = asyncio.ensure_future(self._reload())

    async def _reload(self) -> None:
        while self._asked:
            self._asked = False
            log.info("SIGHUP: reading the lists again")
            try:
                await self._server.reload()
            except SmtpdForkError as error:
                log.error("the lists stay as they were: %s", error)  # noqa: TRY400 - one line
            else:
                log.info("the lists were read again")
        self._task = None

    async def end(self) -> None:
        """Wait for what is being read."""
        if self._task is not None:
            await asyncio.wait([self._task])


async def _serve(server: Server, ready: Callable[[], None] | None) -> None:
    signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in _STOP:
        loop.add_signal_handler(number, signals.put_nowait, number)
    reloads = Reloads(server)
    loop.add_signal_handler(signal.SIGHUP, reloads.ask)
    await server.start()
    _rarely_collect_garbage()
    log.info("serving, pid %d", os.getpid())
    if ready is not None:
        ready()
    number = await signals.get()
    log.info("%s: stopping", number.name)
    stopping = asyncio.ensure_future(server.stop())
    second = asyncio.ensure_future(signals.get())
    await asyncio.wait([stopping, second], return_when=asyncio.FIRST_COMPLETED)
    if second.done() and not stopping.done():
        log.warning("%s again: stopping at once", second.result().name)
        await server.abort()
    second.cancel()
    await asyncio.wait([stopping])
    await reloads.end()
    log.info("stopped")
