"""Serving: the start, and what ends it: signals, a drain, another process in this one's place."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any

from smtpd_fork.cli.event_loop import (
    collect_garbage_rarely,
    log_unraisable,
    loop_factory,
    run_to_its_end,
)
from smtpd_fork.cli.reload import Reloads
from smtpd_fork.cli.services import (
    Services,
    services_of,
    supervised_services,
    supervisor_services,
)
from smtpd_fork.cli.upgrade import Upgrade, old_process_goes_on
from smtpd_fork.errors import ExitStatus, OperatingSystemError, SmtpdForkError, UnavailableError
from smtpd_fork.observe.control import DrainOrder
from smtpd_fork.server import Server
from smtpd_fork.supervisor.channel import Channel
from smtpd_fork.supervisor.handed_denials import receive_denials
from smtpd_fork.supervisor.processes import Processes

if TYPE_CHECKING:
    from pathlib import Path

    from smtpd_fork.cli.setting_sources import SettingSources
    from smtpd_fork.cli.startup_resources import StartupResources
    from smtpd_fork.cli.stop_watchdog import StopWatchdog
    from smtpd_fork.config import DaemonConfig
    from smtpd_fork.daemon import Successor
    from smtpd_fork.observe import Service
    from smtpd_fork.observe.reload_outcome import ReloadOutcome

    Orders = asyncio.Queue[signal.Signals | DrainOrder]
    """Signals, and orders of the control socket, one after another."""

__all__ = ["Serving"]

log = logging.getLogger("smtpd_fork.daemon")

_STOP = (signal.SIGTERM, signal.SIGINT)


class Serving:
    """One process's time in the loop, from start to end.

    :param resources: what the process has besides, and may hand over (SIGUSR2)
    :param watchdog: sees that the process ends, whatever a handler does
    """

    def __init__(
        self,
        server: Server | Processes,
        sources: SettingSources,
        config: DaemonConfig,
        resources: StartupResources,
        watchdog: StopWatchdog,
    ) -> None:
        self._server = server
        self._loop = config.loop
        self._watchdog = watchdog
        self._resources = resources
        self._orders: Orders = asyncio.Queue()
        self._told_to_stop = self._withdrawn = False
        self._stops = Counter[str]()
        self._services = Services(self._services_of(server, config))
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

    def _services_of(self, server: Server | Processes, config: DaemonConfig) -> Iterator[Service]:
        resources = self._resources
        if isinstance(server, Processes):
            server.upgrades.on_end_order = self._told_by_supervisor
            return supervisor_services(server, resources, self._drain, self._reload)
        if (place := resources.supervised) is not None:
            orders = {
                "stop": lambda _: self._stop_signal(signal.SIGTERM),
                "drain": self._drain,
                "leave": lambda _: self._withdraw(server),
                "abort": lambda _: self._abort(),
            }
            line = Channel(socket.socket(fileno=place.line))
            return supervised_services(
                server, line, place.of, orders, self._reload, self._reload_handlers, config
            )
        return services_of(
            server, resources, self._drain, self._reload, self._reload_handlers, config
        )

    def run(self, ready: Callable[[], None] | None = None) -> ExitStatus:
        """Serve until SIGTERM or SIGINT; a second one stops at once.

        :param ready: called once it serves
        :returns: how it ended
        :raises SmtpdForkError: it cannot start
        """
        sys.unraisablehook = log_unraisable
        with asyncio.Runner(loop_factory=loop_factory(self._loop)) as runner:
            try:
                cut = run_to_its_end(runner.get_loop(), self._run(ready), self._listen_again)
            finally:
                self._watchdog.server_has_stopped()
        self._watchdog.loop_has_ended()
        return ExitStatus.CUT if cut else ExitStatus.OK

    def _listen_again(self) -> None:
        self._watchdog.listen(_STOP)

    async def _run(self, ready: Callable[[], None] | None) -> int:
        """Serve until the end; return how many sessions had to be cut."""
        self._listen_to_signals()
        await self._start()
        collect_garbage_rarely()
        if (place := self._resources.supervised) is None:
            log.info("serving, pid %d", os.getpid())
        else:
            log.info("process %d of %d serves, pid %d", place.number, place.of, os.getpid())
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

    def _stop_signal(self, number: signal.Signals) -> None:
        """Stop, or at the second signal stop at once.

        Not under a supervisor: it tells to stop as well, after the service manager, which signals
        all processes.
        """
        if self._resources.supervised is None or not self._told_to_stop:
            self._stop_by("signal", number)
        self._told_to_stop = True

    def _told_by_supervisor(self, word: str) -> None:
        """Stop as the other supervisor of an upgrade does: ``stop``, or ``abort``."""
        for _ in range(1 if word == "stop" else 2 - self._stops["supervisor"]):
            self._stop_by("supervisor", signal.SIGTERM)

    def _stop_by(self, teller: str, number: signal.Signals) -> None:
        """Order the stop, once for a signal of the service manager and a word that came with it."""
        before = max(self._stops.values(), default=0)
        self._stops[teller] += 1
        if self._stops[teller] > before:
            self._orders.put_nowait(number)

    def _abort(self) -> None:
        for _ in range(1 if self._told_to_stop else 2):
            self._orders.put_nowait(signal.SIGTERM)

    def _drain(self, seconds: float | None) -> None:
        self._orders.put_nowait(DrainOrder(seconds))

    def _withdraw(self, server: Server) -> None:
        """Leave the sockets to the processes of another supervisor."""
        if not self._told_to_stop and not self._withdrawn:
            self._withdrawn = True
            server.withdraw()
            self._orders.put_nowait(signal.SIGUSR2)

    def _reload(self, by: str) -> asyncio.Future[ReloadOutcome]:
        return self._reloads.ask(by)

    def _reload_handlers(self, changed: Path, modules: frozenset[str]) -> None:
        self._reloads.ask(f"{changed} changed", modules)

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in _STOP:
            loop.add_signal_handler(number, self._stop_signal, number)
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
        fault: SmtpdForkError | None = None
        try:
            await self._replace_processes()
            if self._resources.pid_file is not None:
                self._resources.pid_file.write(os.getpid())
            successor.ready()
        except SmtpdForkError as error:
            fault = error
            successor.failed(str(error))
        if await old_process_goes_on(successor):
            fault = fault or OperatingSystemError("the old process has cancelled the upgrade")
            if self._has_clients:
                await self._give_up(fault)
            raise fault
        if fault is not None:
            if not self._has_clients:
                raise fault
            log.error("%s; the old process has ended, so this one serves", fault)
        if successor.handover.denials is not None:
            receive_denials(successor.handover.denials, self._server.gate.denials)
        self._resources.take_over()
        self._server.accept()

    async def _replace_processes(self) -> None:
        """Replace the processes of the old supervisor, if there are any.

        :raises SmtpdForkError: one cannot be started, or this process is to stop
        """
        if not isinstance(self._server, Processes):
            return
        replacing = asyncio.ensure_future(self._server.upgrades.replace())
        number = await self._signal_before(replacing)
        if number is not None:
            self._orders.put_nowait(number)  # for what comes next
        if not replacing.done():
            replacing.cancel()
            await asyncio.wait([replacing])
            raise UnavailableError("the new process stops")
        await replacing

    @property
    def _has_clients(self) -> bool:
        """Whether processes serve before this one has everything."""
        return isinstance(self._server, Processes) and self._server.upgrades.serves

    async def _give_up(self, fault: SmtpdForkError) -> None:
        """End with the last session: the old process goes on."""
        log.error("upgrade given up: %s", fault)
        self._server.withdraw()
        await self._services.stop()
        self._resources.give_up()
        await self._leave()

    async def _leave(self) -> int:
        """End with the last session: the new process serves by now."""
        if isinstance(self._server, Server):  # else each process says it
            log.info("sessions that continue in this process: %d", self._server.sessions)
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

    async def _signal_before(
        self, end: asyncio.Future[Any], seconds: float | None = None
    ) -> signal.Signals | None:
        """Wait for *end*, or until the time is up; return the signal that came meanwhile."""
        signalled = asyncio.ensure_future(self._signal())
        await asyncio.wait([end, signalled], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if signalled.done():
            return signalled.result()
        signalled.cancel()
        return None

    async def _until(self, end: Awaitable[None], says: str, seconds: float | None) -> bool:
        """Wait for *end*, until that, or a signal, or the time is up; return whether a signal came.

        :param says: is logged at the end
        """
        ending = asyncio.ensure_future(end)
        number = await self._signal_before(ending, seconds)
        if ending.done():
            log.info("%s", says)
        elif number is not None:
            log.info("%s: stopping", number.name)
        else:
            log.info("drain timeout: stopping")
        ending.cancel()
        await asyncio.wait([ending])
        return number is not None

    async def _stop(self) -> int:
        self._watchdog.server_stops()
        stopping = asyncio.ensure_future(self._server.stop())
        second = await self._signal_before(stopping)
        if second is not None and not stopping.done():
            log.warning("%s again: stopping at once", second.name)
            await self._server.abort()
        return await stopping
