"""Serving: the loop, and what ends it: signals, a drain, another process in this one's place."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from typing import TYPE_CHECKING

from smtpd_fork.cli.python_runtime import collect_garbage_rarely, log_unraisable, loop_factory
from smtpd_fork.cli.reload import Reloads
from smtpd_fork.cli.services import Services, services_of
from smtpd_fork.cli.upgrade import Upgrade, confirmed
from smtpd_fork.errors import ExitStatus
from smtpd_fork.observe.control import DrainOrder

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from typing import Any

    from smtpd_fork.cli.setting_sources import SettingSources
    from smtpd_fork.cli.startup_resources import StartupResources
    from smtpd_fork.cli.stop_watchdog import StopWatchdog
    from smtpd_fork.config import DaemonConfig
    from smtpd_fork.daemon import Successor
    from smtpd_fork.server import Server

    Orders = asyncio.Queue[signal.Signals | DrainOrder]
    """Signals, and orders of the control socket, one after another."""

__all__ = ["serve"]

log = logging.getLogger("smtpd_fork.daemon")

_STOP = (signal.SIGTERM, signal.SIGINT)


def serve(
    server: Server,
    sources: SettingSources,
    config: DaemonConfig,
    resources: StartupResources,
    watchdog: StopWatchdog,
    *,
    ready: Callable[[], None] | None = None,
) -> ExitStatus:
    """Run *server* until SIGTERM or SIGINT; a second one stops at once.

    :param sources: the settings, and where they came from
    :param config: the same, read
    :param resources: what the process has besides, and may hand over (SIGUSR2)
    :param watchdog: sees that the process ends, whatever a handler does
    :param ready: called once it serves
    :returns: how it ended
    :raises SmtpdForkError: it cannot start
    """
    log_unraisable()
    service = _Daemon(server, sources, config, resources, watchdog)
    with asyncio.Runner(loop_factory=loop_factory(config.loop)) as runner:
        try:
            cut = _run_to_its_end(runner.get_loop(), service.run(ready), watchdog)
        finally:
            watchdog.server_has_stopped()
    watchdog.loop_has_ended()
    return ExitStatus.CUT if cut else ExitStatus.OK


def _run_to_its_end(
    loop: asyncio.AbstractEventLoop, main: Coroutine[Any, Any, int], watchdog: StopWatchdog
) -> int:
    """Run *main*; a task or callback of a handler that calls sys.exit() ends only itself.

    asyncio lets SystemExit and KeyboardInterrupt of any task out of the loop. Signals never come
    as KeyboardInterrupt here: they have handlers.
    """
    task = loop.create_task(main)
    while True:
        try:
            return loop.run_until_complete(task)
        except (SystemExit, KeyboardInterrupt):
            if task.done():
                raise
            log.exception("a task or callback of a handler tried to end the process")
            loop.call_soon(watchdog.listen, _STOP)


class _Daemon:
    """One process's time in the loop, from start to end; see :func:`serve`."""

    def __init__(
        self,
        server: Server,
        sources: SettingSources,
        config: DaemonConfig,
        resources: StartupResources,
        watchdog: StopWatchdog,
    ) -> None:
        self._server = server
        self._watchdog = watchdog
        self._resources = resources
        self._orders: Orders = asyncio.Queue()
        self._services = Services(
            services_of(server, resources, lambda s: self._orders.put_nowait(DrainOrder(s)))
        )
        turn = asyncio.Lock()
        self._reloads = Reloads(server, sources, config, self._services, turn)
        self._upgrade = Upgrade(
            server,
            resources,
            self._services,
            done=lambda: self._orders.put_nowait(signal.SIGUSR2),
            detached=config.detach,
            turn=turn,
        )

    async def run(self, ready: Callable[[], None] | None) -> int:
        """Serve until the end; return how many sessions had to be cut."""
        self._listen_to_signals()
        await self._start()
        collect_garbage_rarely()
        log.info("serving, pid %d", os.getpid())
        if ready is not None:
            ready()
        self._upgrade.serving()
        await self._services.each(lambda service: service.serving())
        order = await self._orders.get()
        if order is signal.SIGUSR2:
            cut = await self._leave()
        else:
            await self._upgrade.end()
            await self._services.each(lambda service: service.stopping())
            if isinstance(order, DrainOrder):
                await self._until(self._server.drain(), "drained: stopping", order.seconds)
            else:
                log.info("%s: stopping", order.name)
            cut = await self._stop()
        await self._reloads.end()
        await self._services.stop()
        log.info("stopped")
        return cut

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in _STOP:
            loop.add_signal_handler(number, self._orders.put_nowait, number)
        loop.add_signal_handler(signal.SIGHUP, self._reloads.ask)
        loop.add_signal_handler(signal.SIGUSR2, self._upgrade.ask)
        self._watchdog.listen(_STOP)

    async def _start(self) -> None:
        """Begin to serve; in an upgrade, once the old process has let go.

        :raises SmtpdForkError: it cannot serve
        """
        successor = self._resources.successor
        await self._server.start(accept=successor is None)
        try:
            await self._services.start()
            if successor is not None:
                await self._take_over(successor)
        except BaseException:
            await self._services.stop()
            await self._server.abort()
            raise

    async def _take_over(self, successor: Successor) -> None:
        """Take the place of the old process.

        :raises SmtpdForkError: that one goes on, or the pid-file cannot be written
        """
        if self._resources.pid_file is not None:
            self._resources.pid_file.write(os.getpid())
        await confirmed(successor)
        self._resources.take_over()
        self._server.accept()

    async def _leave(self) -> int:
        """End with the last session: the new process serves by now."""
        log.info("%d sessions go on here until they end", self._server.sessions)
        signalled = await self._until(self._server.leave(), "the last session has ended", None)
        await self._upgrade.end()
        if signalled:
            return await self._stop()
        self._watchdog.server_stops()
        return await self._server.stop()

    async def _signal(self) -> signal.Signals:
        """Return the next signal; an order to drain is ignored once the end has begun."""
        while not isinstance(order := await self._orders.get(), signal.Signals):
            pass
        return order

    async def _until(self, end: Awaitable[None], says: str, seconds: float | None) -> bool:
        """Wait for *end*, until that, or a signal, or the time is up; return whether a signal came.

        :param says: is logged at the end
        """
        ending = asyncio.ensure_future(end)
        number = asyncio.ensure_future(self._signal())
        await asyncio.wait([ending, number], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        signalled = number.done()
        if ending.done():
            log.info("%s", says)
        elif signalled:
            log.info("%s: stopping", number.result().name)
        else:
            log.info("the time to drain is over: stopping")
        for each in (ending, number):
            each.cancel()
        await asyncio.wait([ending, number])
        return signalled

    async def _stop(self) -> int:
        self._watchdog.server_stops()
        stopping = asyncio.ensure_future(self._server.stop())
        second = asyncio.ensure_future(self._signal())
        await asyncio.wait([stopping, second], return_when=asyncio.FIRST_COMPLETED)
        if second.done() and not stopping.done():
            log.warning("%s again: stopping at once", second.result().name)
            await self._server.abort()
        second.cancel()
        await asyncio.wait([stopping])
        return stopping.result()
