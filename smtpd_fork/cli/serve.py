"""Serving: the loop, and the signals that end it."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
from typing import TYPE_CHECKING

from smtpd_fork.cli.companions import Companions, companions_of
from smtpd_fork.cli.reload import Reloads

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from smtpd_fork.config import DaemonConfig
    from smtpd_fork.listeners import Listener
    from smtpd_fork.server import Server

__all__ = ["serve"]

log = logging.getLogger("smtpd_fork.daemon")

_GC_THRESHOLDS = (20_000, 20, 20)
"""Of :func:`gc.set_threshold`; by default it would look at every few dozen sessions."""

_STOP = (signal.SIGTERM, signal.SIGINT)


def serve(
    server: Server,
    config: DaemonConfig,
    *,
    ready: Callable[[], None] | None = None,
    metrics: Sequence[Listener] = (),
) -> None:
    """Run *server* until SIGTERM or SIGINT; a second one stops at once.

    :param ready: called once it serves
    :param metrics: where these are served, if they are
    :raises SmtpdForkError: it cannot start
    """
    with asyncio.Runner(loop_factory=_loop_factory(config.loop)) as runner:
        companions = Companions(companions_of(config, server, metrics))
        runner.run(_serve(server, config, companions, ready))


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


async def _serve(
    server: Server,
    config: DaemonConfig,
    companions: Companions,
    ready: Callable[[], None] | None,
) -> None:
    signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in _STOP:
        loop.add_signal_handler(number, signals.put_nowait, number)
    reloads = Reloads(server, config, companions)
    loop.add_signal_handler(signal.SIGHUP, reloads.ask)
    await server.start()
    try:
        await companions.start()
    except BaseException:
        await server.abort()
        raise
    _rarely_collect_garbage()
    log.info("serving, pid %d", os.getpid())
    if ready is not None:
        ready()
    number = await signals.get()
    log.info("%s: stopping", number.name)
    await companions.stopping()
    stopping = asyncio.ensure_future(server.stop())
    second = asyncio.ensure_future(signals.get())
    await asyncio.wait([stopping, second], return_when=asyncio.FIRST_COMPLETED)
    if second.done() and not stopping.done():
        log.warning("%s again: stopping at once", second.result().name)
        await server.abort()
    second.cancel()
    await asyncio.wait([stopping])
    await reloads.end()
    await companions.stop()
    log.info("stopped")
