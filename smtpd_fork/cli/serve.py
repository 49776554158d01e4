"""Serving: runs the server of a process until a signal, a drain or an upgrade ends it."""

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
    run_until_complete,
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
    """Signals and drain orders, which are carried out one after another."""

__all__ = ["Serving"]

log = logging.getLogger("smtpd_fork.daemon")

_STOP = (signal.SIGTERM, signal.SIGINT)


class Serving:
    """Runs the server of one process in the event loop, from the start to the end.

    :param resources: sockets and files of the process, which an upgrade (SIGUSR2) hands over
    :param watchdog: ends the process if a handler prevents the stop
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
        self._stop_received = self._withdrawn = False
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
            server.upgrades.on_end_order = self._stop_by_supervisor
            return supervisor_services(server, resources, self._drain, self._reload)
        if (position := resources.supervised) is not None:
            orders = {
                "stop": lambda _: self._stop_signal(signal.SIGTERM),
                "drain": self._drain,
                "leave": lambda _: self._withdraw(server),
                "abort": lambda _: self._abort(),
            }
            line = Channel(socket.socket(fileno=position.line))
            return supervised_services(
                server, line, position.of, orders, self._reload, self._reload_handlers, config
            )
        return services_of(
            server, resources, self._drain, self._reload, self._reload_handlers, config
        )

    def run(self, ready: Callable[[], None] | None = None) -> ExitStatus:
        """Serve until SIGTERM or SIGINT; a second signal stops immediately.

        :param ready: called when the server accepts clients
        :returns: the exit status
        :raises SmtpdForkError: the server cannot start
        """
        sys.unraisablehook = log_unraisable
        with asyncio.Runner(loop_factory=loop_factory(self._loop)) as runner:
            try:
                cut = run_until_complete(runner.get_loop(), self._run(ready), self._listen_again)
            finally:
                self._watchdog.server_has_stopped()
        self._watchdog.loop_has_ended()
        return ExitStatus.FORCED if cut else ExitStatus.OK

    def _listen_again(self) -> None:
        self._watchdog.listen(_STOP)

    async def _run(self, ready: Callable[[], None] | None) -> int:
        """Serve until the end; return the number of sessions that were closed by force."""
        self._listen_to_signals()
        await self._start()
        collect_garbage_rarely()
        if (position := self._resources.supervised) is None:
            log.info("serving, pid %d", os.getpid())
        else:
            log.info("process %d of %d serves, pid %d", position.number, position.of, os.getpid())
        if ready is not None:
            ready()
        self._upgrade.serving()
        await self._services.call_all(lambda service: service.serving())
        order = await self._orders.get()
        if order is signal.SIGUSR2:
            cut = await self._leave()
        else:
            await self._upgrade.end()
            await self._services.call_all(lambda service: service.stopping())
            if isinstance(order, DrainOrder):
                await self._wait_until(self._server.drain(), "drained: stopping", order.seconds)
            else:
                log.info("%s: stopping", order.name)
            cut = await self._stop()
        await self._reloads.end()
        await self._services.stop()
        log.info("stopped")
        return cut

    def _stop_signal(self, number: signal.Signals) -> None:
        """Stop gracefully, or immediately at the second signal.

        Under a supervisor, a second stop is ignored: the service manager may signal all processes,
        and the supervisor then orders the stop as well.
        """
        if self._resources.supervised is None or not self._stop_received:
            self._stop_by("signal", number)
        self._stop_received = True

    def _stop_by_supervisor(self, word: str) -> None:
        """Stop together with the other supervisor of an upgrade: ``stop``, or ``abort``."""
        for _ in range(1 if word == "stop" else 2 - self._stops["supervisor"]):
            self._stop_by("supervisor", signal.SIGTERM)

    def _stop_by(self, origin: str, number: signal.Signals) -> None:
        """Order a stop, but only once if a signal and an order of the supervisor coincide."""
        before = max(self._stops.values(), default=0)
        self._stops[origin] += 1
        if self._stops[origin] > before:
            self._orders.put_nowait(number)

    def _abort(self) -> None:
        for _ in range(1 if self._stop_received else 2):
            self._orders.put_nowait(signal.SIGTERM)

    def _drain(self, seconds: float | None) -> None:
        self._orders.put_nowait(DrainOrder(seconds))

    def _withdraw(self, server: Server) -> None:
        """Stop listening, and end with the last session: another supervisor has the sockets."""
        if not self._stop_received and not self._withdrawn:
            self._withdrawn = True
            server.withdraw()
            self._orders.put_nowait(signal.SIGUSR2)

    def _reload(self, by: str) -> asyncio.Future[ReloadOutcome]:
        return self._reloads.request(by)

    def _reload_handlers(self, changed: Path, modules: frozenset[str]) -> None:
        self._reloads.request(f"{changed} changed", modules)

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in _STOP:
            loop.add_signal_handler(number, self._stop_signal, number)
        loop.add_signal_handler(signal.SIGHUP, self._reloads.request)
        loop.add_signal_handler(signal.SIGUSR2, self._upgrade.request)
        self._watchdog.listen(_STOP)

    async def _start(self) -> None:
        """Start the server; in an upgrade, replace the old process before clients are accepted.

        :raises SmtpdForkError: the server cannot start
        """
        successor = self._resources.successor
        await self._server.start(accept=successor is None)
        try:
            await self._services.start()
            if successor is not None:
                await self._replace_old_process(successor)
        except BaseException:
            await self._services.stop()
            await self._server.abort()
            raise

    async def _replace_old_process(self, successor: Successor) -> None:
        """Replace the old process of an upgrade.

        :raises SmtpdForkError: the old process continues, or the pid file cannot be written
        """
        failure: SmtpdForkError | None = None
        try:
            await self._replace_processes()
            if self._resources.pid_file is not None:
                self._resources.pid_file.write(os.getpid())
            successor.ready()
        except SmtpdForkError as error:
            failure = error
            successor.failed(str(error))
        if await old_process_goes_on(successor):
            failure = failure or OperatingSystemError("the old process has cancelled the upgrade")
            if self._has_clients:
                await self._abandon_upgrade(failure)
            raise failure
        if failure is not None:
            if not self._has_clients:
                raise failure
            log.error("%s; the old process has ended, so this one serves", failure)
        if successor.handover.denials is not None:
            receive_denials(successor.handover.denials, self._server.gate.denials)
        self._resources.own_inherited()
        self._server.accept()

    async def _replace_processes(self) -> None:
        """Replace the processes of the old supervisor, if there are any.

        :raises SmtpdForkError: a process cannot be started, or this process is stopped
        """
        if not isinstance(self._server, Processes):
            return
        replacing = asyncio.ensure_future(self._server.upgrades.replace())
        number = await self._signal_before(replacing)
        if number is not None:
            self._orders.put_nowait(number)  # to be carried out when this step has ended
        if not replacing.done():
            replacing.cancel()
            await asyncio.wait([replacing])
            raise UnavailableError("the new process was stopped")
        await replacing

    @property
    def _has_clients(self) -> bool:
        """Whether processes of this supervisor serve before the upgrade is complete."""
        return isinstance(self._server, Processes) and self._server.upgrades.serves

    async def _abandon_upgrade(self, reason: SmtpdForkError) -> None:
        """Abandon the upgrade, as the old process continues; end with the last session."""
        log.error("upgrade given up: %s", reason)
        self._server.withdraw()
        await self._services.stop()
        self._resources.close_sockets()
        await self._leave()

    async def _leave(self) -> int:
        """End with the last session, as the new process serves."""
        if isinstance(self._server, Server):  # otherwise each process logs it
            log.info("sessions that continue in this process: %d", self._server.sessions)
        signalled = await self._wait_until(self._server.leave(), "the last session has ended", None)
        await self._upgrade.end()
        if signalled:
            return await self._stop()
        self._watchdog.server_stops()
        return await self._server.stop()

    async def _next_signal(self) -> signal.Signals:
        """Return the next signal; orders to drain are ignored while the process stops."""
        while not isinstance(order := await self._orders.get(), signal.Signals):
            pass
        return order

    async def _signal_before(
        self, end: asyncio.Future[Any], seconds: float | None = None
    ) -> signal.Signals | None:
        """Wait for *end*, a signal or the timeout; return the signal, or None."""
        signalled = asyncio.ensure_future(self._next_signal())
        await asyncio.wait([end, signalled], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if signalled.done():
            return signalled.result()
        signalled.cancel()
        return None

    async def _wait_until(self, end: Awaitable[None], message: str, seconds: float | None) -> bool:
        """Wait for *end*, a signal or the timeout; return whether a signal was received.

        :param message: logged when *end* is done
        """
        ending = asyncio.ensure_future(end)
        number = await self._signal_before(ending, seconds)
        if ending.done():
            log.info("%s", message)
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
