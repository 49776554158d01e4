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
from smtpd_fork.supervisor.shared_limits import LEASE_SECONDS, SupervisorLink

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
    """Return the services that *resources* have been opened for, in the order of their start.

    :param drain: ends the daemon with its last session, or after so many seconds
    :param reload: reads the settings again, for the administrator whom it is given
    :param reload_handlers: loads the handlers again, as the given file has changed
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
    """Return the services of the supervisor, which answer for all processes."""
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
    """Return the services of a process under a supervisor, by which it shares its limits.

    :param processes: how many there are
    :param orders: what ends the process, by the word of the supervisor
    """
    yield LogReload()
    figures = None
    if config.metrics is not None:
        from smtpd_fork.supervisor.statistics import ChildStatistics  # noqa: PLC0415 - of an extra

        yield (shown := ChildStatistics(server))
        figures = shown.figures
    link = SupervisorLink(line)
    if server.fleet is None:  # else the processes share limits by that
        node, lease = config.hostname, LEASE_SECONDS
        server.fleet = Fleet(
            server.gate,
            link,
            node=node,
            timeout=server.config.fleet_timeout,
            lease=lease,
            processes=processes,
        )
    yield ChildControl(line, link.receive_hint, server, orders, reload, figures)
    if config.reload_handlers:
        yield HandlerWatch(config.handler, reload_handlers)


class Services:
    """The services of a daemon.

    :param services: in the order of their start; they are called in the reverse order
    """

    def __init__(self, services: Iterable[Service]) -> None:
        self._all = list(services)
        self._started: list[Service] = []
        self._handed_over = False

    @property
    def have_left(self) -> bool:
        """Whether a new process serves in place of this one."""
        return self._handed_over

    async def start(self) -> None:
        """Start them, one after another.

        :raises SmtpdForkError: one cannot start; those before it have stopped
        """
        try:
            for service in self._all:
                await service.start()
                self._started.append(service)
        except BaseException:
            await self.stop()
            raise

    async def each(self, call: Callable[[Service], Awaitable[None]]) -> None:
        """Call a method of each, unless a new process has replaced this one; errors are logged."""
        if not self._handed_over:
            await self._call(call)

    def sockets(self) -> dict[str, socket.socket]:
        """Return the sockets that an upgrade hands over."""
        return {name: sock for service in self._started for name, sock in service.sockets().items()}

    async def handed_over(self, pid: int) -> None:
        """Tell them that process *pid* serves now; only :meth:`stop` has an effect after this."""
        await self.each(lambda service: service.handed_over(pid))
        self._handed_over = True

    async def stop(self) -> None:
        """Stop them."""
        await self._call(lambda service: service.stop())

    async def _call(self, call: Callable[[Service], Awaitable[None]]) -> None:
        for service in reversed(self._started):
            try:
                await call(service)
            except Exception:
                log.exception("%s failed", service)
