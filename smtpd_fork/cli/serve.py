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
from smtpd_fork.cli.takeover import Takeover, confirmed

if TYPE_CHECKING:
    from collections.abc import Callable

    from smtpd_fork.cli.holdings import Holdings
    from smtpd_fork.config import DaemonConfig
    from smtpd_fork.daemon import Heir
    from smtpd_fork.server import Server

__all__ = ["serve"]

log = logging.getLogger("smtpd_fork.daemon")

_GC_THRESHOLDS = (20_000, 20, 20)
"""Of :func:`gc.set_threshold`; by default it would look at every few dozen sessions."""

_STOP = (signal.SIGTERM, signal.SIGINT)


def serve(
    server: Server,
    config: DaemonConfig,
    holdings: Holdings,
    *,
    ready: Callable[[], None] | None = None,
) -> None:
    """Run *server* until SIGTERM or SIGINT; a second one stops at once.

    :param holdings: what the process has besides, and may hand over (SIGUSR2)
    :param ready: called once it serves
    :raises SmtpdForkError: it cannot start
    """
    with asyncio.Runner(loop_factory=_loop_factory(config.loop)) as runner:
        companions = Companions(companions_of(config, server, holdings))
        runner.run(_serve(server, config, holdings, companions, ready))


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
    holdings: Holdings,
    companions: Companions,
    ready: Callable[[], None] | None,
) -> None:
    signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in _STOP:
        loop.add_signal_handler(number, signals.put_nowait, number)
    reloads = Reloads(server, config, companions)
    loop.add_signal_handler(signal.SIGHUP, reloads.ask)
    takeover = Takeover(
        server,
        holdings,
        companions,
        done=lambda: signals.put_nowait(signal.SIGUSR2),
        detached=config.detach,
    )
    loop.add_signal_handler(signal.SIGUSR2, takeover.ask)
    await server.start(accept=holdings.heir is None)
    try:
        await companions.start()
        if holdings.heir is not None:
            await _take_over(server, holdings, holdings.heir)
    except BaseException:
        await companions.stop()
        await server.abort()
        raise
    _rarely_collect_garbage()
    log.info("serving, pid %d", os.getpid())
    if ready is not None:
        ready()
    takeover.serving()
    await companions.serving()
    heard: signal.Signals | None = await signals.get()
    if heard is signal.SIGUSR2:
        heard = await _leave(server, signals)
    await takeover.end()
    if heard is not None:
        await _stop(server, companions, signals, heard)
    else:
        await server.stop()
    await reloads.end()
    await companions.stop()
    log.info("stopped")


async def _take_over(server: Server, holdings: Holdings, heir: Heir) -> None:
    """Go on in another process's place.

    :raises SmtpdForkError: it goes on itself, or the pid-file cannot be written
    """
    if holdings.pid_file is not None:
        holdings.pid_file.write(os.getpid())
    await confirmed(heir)
    holdings.take_over()
    server.accept()


async def _leave(server: Server, signals: asyncio.Queue[signal.Signals]) -> signal.Signals | None:
    """Let everybody finish; return the signal that put an end to that, if one did."""
    log.info("%d sessions go on here until they end", server.sessions)
    leaving = asyncio.ensure_future(server.leave())
    stop = asyncio.ensure_future(signals.get())
    await asyncio.wait([leaving, stop], return_when=asyncio.FIRST_COMPLETED)
    leaving.cancel()
    if stop.done():
        return stop.result()
    stop.cancel()
    return None


async def _stop(
    server: Server,
    companions: Companions,
    signals: asyncio.Queue[signal.Signals],
    number: signal.Signals,
) -> None:
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
