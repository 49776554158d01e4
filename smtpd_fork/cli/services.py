"""The background services of the daemon: log, control socket, metrics, notifications."""

from __future__ import annotations

import logging
import socket
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from smtpd_fork.cli.handler_watch import HandlerWatch
from smtpd_fork.fleet import Fleet
from smtpd_fork.observe import Notifications, Service
from smtpd_fork.observe.control import Control
from smtpd_fork.observe.logs import LogReload
from smtpd_fork.supervisor.administration import AllProcesses
from smtpd_fork.supervisor.child_control import ChildControl
from smtpd_fork.supervisor.shared_limits import ANSWER_SECONDS, LEASE_SECONDS, SupervisorLink

if TYPE_CHECKING:
    from pathlib import Path

    from smtpd_fork.cli.startup_resources import StartupResources
    from smtpd_fork.config import DaemonConfig
    from smtpd_fork.observe.reload_outcome import ReloadOutcome
    from smtpd_fork.server import Server
    from smtpd_fork.supervisor.channel import Channel
    from smtpd_fork.supervisor.processes import Processes

__all__ = ["Services", "services_of", "supervised_services", "supervisor_services"]

log = logging.getLogger("smtpd_fork.daemon")


def services_of(
    server: Server,
    resources: StartupResources,
    drain: Callable[[float | None], None],
    reload: Callable[[str], Awaitable[ReloadOutcome]],
    reload_handlers: Callable[[Path, frozenset[str]], object],
    config: DaemonConfig,
) -> Iterator[Service]:
    """Yield the services of a daemon with a single process, in the order of their start.

    :param drain: stops the daemon after its last session, or after the given seconds
    :param reload: reloads the settings; its argument is the origin of the request, for the log
    :param reload_handlers: loads the handlers again, as the given file and modules have changed
    """
    yield LogReload()
    if resources.control is not None:
        yield Control(resources.control, server, drain, reload)
    if resources.metrics:
        from smtpd_fork.observe.status_server import StatusServer  # noqa: PLC0415 - of an extra

        yield StatusServer(server, resources.metrics)
    if resources.notifier is not None:
        yield Notifications(resources.notifier, server.gate)
    if config.reload_handlers:
        yield HandlerWatch(config.handler, reload_handlers)


def supervisor_services(
    processes: Processes,
    resources: StartupResources,
    drain: Callable[[float | None], None],
    reload: Callable[[str], Awaitable[ReloadOutcome]],
) -> Iterator[Service]:
    """Yield the services of the supervisor, which combine the data of all processes."""
    yield LogReload()
    if resources.control is not None:
        yield Control(resources.control, processes, drain, reload, AllProcesses(processes, drain))
    if resources.metrics:
        from smtpd_fork.observe.status_server import StatusServer  # noqa: PLC0415 - of an extra
        from smtpd_fork.supervisor.statistics import MergedStatistics  # noqa: PLC0415

        merged = MergedStatistics(processes)
        yield StatusServer(processes, resources.metrics, merged, merged.values)
    if resources.notifier is not None:
        yield Notifications(resources.notifier, processes)


def supervised_services(
    server: Server,
    line: Channel,
    processes: int,
    orders: Mapping[str, Callable[[Any], object]],
    reload: Callable[[str], Awaitable[ReloadOutcome]],
    reload_handlers: Callable[[Path, frozenset[str]], object],
    config: DaemonConfig,
) -> Iterator[Service]:
    """Yield the services of a process under a supervisor; it shares its limits by the supervisor.

    :param processes: number of processes
    :param orders: the functions that stop the process, by the order of the supervisor
    """
    yield LogReload()
    collect = None
    if config.metrics is not None:
        from smtpd_fork.supervisor.statistics import ChildStatistics  # noqa: PLC0415 - of an extra

        yield (statistics := ChildStatistics(server))
        collect = statistics.collect
    link = SupervisorLink(line)
    if server.fleet is None:  # otherwise the processes share their limits by the fleet
        server.fleet = Fleet(
            server.gate,
            link,
            node=config.hostname,
            timeout=ANSWER_SECONDS,
            lease=LEASE_SECONDS,
            processes=processes,
        )
    yield ChildControl(line, link.receive_hint, server, orders, reload, collect)
    if config.reload_handlers:
        yield HandlerWatch(config.handler, reload_handlers)


class Services:
    """The services of a daemon.

    :param services: in the order in which they are started; they are stopped in reverse order
    """

    def __init__(self, services: Iterable[Service]) -> None:
        self._all = list(services)
        self._started: list[Service] = []
        self._handed_over = False

    @property
    def are_handed_over(self) -> bool:
        """Whether an upgrade has replaced this process."""
        return self._handed_over

    async def start(self) -> None:
        """Start the services, one after another.

        :raises SmtpdForkError: a service cannot start; those before it are stopped
        """
        try:
            for service in self._all:
                await service.start()
                self._started.append(service)
        except BaseException:
            await self.stop()
            raise

    async def call_all(self, call: Callable[[Service], Awaitable[None]]) -> None:
        """Call a method of each service and log errors; do nothing after an upgrade."""
        if not self._handed_over:
            await self._call(call)

    def sockets(self) -> dict[str, socket.socket]:
        """Return the sockets that an upgrade passes to the new process."""
        return {name: sock for service in self._started for name, sock in service.sockets().items()}

    async def handed_over(self, pid: int) -> None:
        """Notify the services that process *pid* serves now; call only :meth:`stop` after this."""
        await self.call_all(lambda service: service.handed_over(pid))
        self._handed_over = True

    async def stop(self) -> None:
        """Stop the services."""
        await self._call(lambda service: service.stop())

    async def _call(self, call: Callable[[Service], Awaitable[None]]) -> None:
        for service in reversed(self._started):
            try:
                await call(service)
            except Exception:
                log.exception("%s failed", service)
