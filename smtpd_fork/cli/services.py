"""Services: what runs beside the server, as the settings name it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from smtpd_fork.observe import Notifications
from smtpd_fork.observe.control import Control
from smtpd_fork.observe.logs import LogReload

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Iterable, Iterator

    from smtpd_fork.cli.resources import Resources
    from smtpd_fork.config import DaemonConfig
    from smtpd_fork.observe import Service
    from smtpd_fork.server import Server

__all__ = ["Services", "services_of"]

log = logging.getLogger("smtpd_fork.daemon")


def services_of(
    config: DaemonConfig,  # noqa: ARG001 - what is opened by now says enough
    server: Server,
    resources: Resources,
    *,
    drain: Callable[[float | None], None],
) -> Iterator[Service]:
    """Return what *config* wants beside *server*, in the order in which it begins.

    :param resources: what the process has besides; what a service of the process before it left
        is had by ``resources.claim()``
    :param drain: has the daemon end with its last session, or after so many seconds
    :raises SmtpdForkError: one of them cannot be
    """
    yield LogReload()
    if resources.control is not None:
        yield Control(resources.control, server, drain)
    if resources.metrics:
        from smtpd_fork.observe.status_server import StatusServer  # noqa: PLC0415 - an extra has its libraries

        yield StatusServer(server, resources.metrics)
    if resources.notifier is not None:
        yield Notifications(resources.notifier, server.gate)


class Services:
    """All of them, as one.

    :param services: in the order in which they begin; they end in the other
    """

    def __init__(self, services: Iterable[Service]) -> None:
        self._all = list(services)
        self._started: list[Service] = []
        self._handed_over = False

    async def start(self) -> None:
        """Begin, one after another.

        :raises SmtpdForkError: one cannot; those before it have ended
        """
        try:
            for service in self._all:
                await service.start()
                self._started.append(service)
        except BaseException:
            await self.stop()
            raise

    async def serving(self) -> None:
        """Tell them that the start is over."""
        await self._tell(lambda service: service.serving())

    def sockets(self) -> dict[str, socket.socket]:
        """Return what a new process is to go on with."""
        return {name: sock for service in self._started for name, sock in service.sockets().items()}

    async def handed_over(self, pid: int) -> None:
        """Tell them that another process serves now; from then on they hear of no more."""
        await self._tell(lambda service: service.handed_over(pid))
        self._handed_over = True

    async def reloading(self) -> None:
        """Tell them that a reload has begun."""
        await self._tell(lambda service: service.reloading())

    async def reloaded(self, config: DaemonConfig) -> None:
        """Tell them that it has ended."""
        await self._tell(lambda service: service.reloaded(config))

    async def stopping(self) -> None:
        """Tell them that the stop has begun."""
        await self._tell(lambda service: service.stopping())

    async def stop(self) -> None:
        """Have them end."""
        await self._tell(lambda service: service.stop(), last=True)

    async def _tell(
        self, what: Callable[[Service], Awaitable[None]], *, last: bool = False
    ) -> None:
        if self._handed_over and not last:
            return
        for service in reversed(self._started):
            try:
                await what(service)
            except Exception:
                log.exception("%s failed", service)
