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
from smtpd_fork.cli.unraisable import log_unraisable
from smtpd_fork.errors import ExitStatus
from smtpd_fork.observe.control import DrainOrder

if TYPE_CHECKING:
    from collections.abc import Callable

    from smtpd_fork.cli.given import Given
    from smtpd_fork.config import DaemonConfig
    from smtpd_fork.listeners import Listener
    from smtpd_fork.server import Server

    Words = asyncio.Queue[signal.Signals | DrainOrder]
    """What the daemon is told, one after another."""

__all__ = ["serve"]

log = logging.getLogger("smtpd_fork.daemon")

_GC_THRESHOLDS = (20_000, 20, 20)
"""Of :func:`gc.set_threshold`; by default it would look at every few dozen sessions."""

_STOP = (signal.SIGTERM, signal.SIGINT)


def serve(
    server: Server,
    given: Given,
    config: DaemonConfig,
    *,
    ready: Callable[[], None] | None = None,
    control: Listener | None = None,
) -> ExitStatus:
    """Run *server* until SIGTERM or SIGINT; a second one stops at once.

    :param given: the settings, and where they came from
    :param config: the same, read
    :param ready: called once it serves
    :param control: the control socket, bound already
    :returns: how it ended
    :raises SmtpdForkError: it cannot start
    """
    log_unraisable()
    with asyncio.Runner(loop_factory=_loop_factory(config.loop)) as runner:
        words: Words = asyncio.Queue()
        companions = Companions(
            companions_of(
                config,
                server,
                control=control,
                drain=lambda seconds: words.put_nowait(DrainOrder(seconds)),
            )
        )
        reloads = Reloads(server, given, config, companions)
        cut = runner.run(_serve(server, reloads, companions, words, ready))
    return ExitStatus.CUT if cut else ExitStatus.OK


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


async def _signal(words: Words) -> signal.Signals:
    """Return the next signal; what else is said counts no more, once the end has begun."""
    while not isinstance(word := await words.get(), signal.Signals):
        pass
    return word


async def _drain(server: Server, words: Words, order: DrainOrder) -> None:
    """Let the last sessions end by themselves, until that, or until a signal or the time is up."""
    draining = asyncio.ensure_future(server.drain())
    number = asyncio.ensure_future(_signal(words))
    await asyncio.wait(
        [draining, number], timeout=order.seconds, return_when=asyncio.FIRST_COMPLETED
    )
    if draining.done():
        log.info("drained: stopping")
    elif number.done():
        log.info("%s: stopping", number.result().name)
    else:
        log.info("the time to drain is over: stopping")
    for each in (draining, number):
        each.cancel()
    await asyncio.wait([draining, number])


async def _serve(
    server: Server,
    reloads: Reloads,
    companions: Companions,
    words: Words,
    ready: Callable[[], None] | None,
) -> int:
    loop = asyncio.get_running_loop()
    for number in _STOP:
        loop.add_signal_handler(number, words.put_nowait, number)
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
    word = await words.get()
    if isinstance(word, DrainOrder):
        await companions.stopping()
        await _drain(server, words, word)
    else:
        log.info("%s: stopping", word.name)
        await companions.stopping()
    stopping = asyncio.ensure_future(server.stop())
    second = asyncio.ensure_future(_signal(words))
    await asyncio.wait([stopping, second], return_when=asyncio.FIRST_COMPLETED)
    if second.done() and not stopping.done():
        log.warning("%s again: stopping at once", second.result().name)
        await server.abort()
    second.cancel()
    await asyncio.wait([stopping])
    await reloads.end()
    await companions.stop()
    log.info("stopped")
    return stopping.result()
