"""Service: a background service of the daemon, and what it sees of the server that it observes."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, Unpack

if TYPE_CHECKING:
    from smtpd_fork.config import Config, DaemonConfig
    from smtpd_fork.dialogue import Tally
    from smtpd_fork.fleet import Fleet
    from smtpd_fork.gate import Gate, Ticket
    from smtpd_fork.handlers import Chain
    from smtpd_fork.listeners import Address, Listener
    from smtpd_fork.settings import GateSettings

__all__ = ["Observed", "Service", "metrics_name"]


class Observed(Protocol):
    """A :class:`smtpd_fork.Server`, as far as services observe and administer it."""

    gate: Gate
    tally: Tally
    fleet: Fleet | None

    @property
    def config(self) -> Config:
        """The settings in force."""

    @property
    def listeners(self) -> Sequence[Listener]:
        """The bound sockets."""

    @property
    def chain(self) -> Chain:
        """The handlers of new sessions."""

    @property
    def zones(self) -> Mapping[str, bool]:
        """The DNS blocklists, and whether each is in use."""

    @property
    def changed_limits(self) -> Mapping[str, Any]:
        """The limits that were changed at run time, and are in force."""

    async def set_limits(self, **settings: Unpack[GateSettings]) -> str:
        """Change limits until the next reload; return a warning, or an empty text."""

    async def kick(self, chosen: Callable[[Ticket], bool]) -> int:
        """End the chosen sessions; return how many there were."""


class Service:
    """A background service: metrics, the control socket, notifications of systemd.

    The daemon calls these methods in this order, each at most once but for :meth:`reloading` and
    :meth:`reloaded`. An error in any but :meth:`start` is logged, and has no other effect.
    """

    async def start(self) -> None:
        """Begin; the server serves.

        :raises SmtpdForkError: it cannot begin; the start of the daemon fails
        """

    async def serving(self) -> None:
        """Take note that the start has succeeded."""

    def sockets(self) -> Mapping[str, socket.socket]:
        """Return the sockets that an upgrade hands over, each by a name of its own."""
        return {}

    async def handed_over(self, pid: int) -> None:
        """Take note that process *pid* serves from now on, also on those sockets.

        Sessions go on until they end. Only :meth:`stop` is called after this.
        """

    async def reloading(self) -> None:
        """Take note that a reload has begun."""

    async def reloaded(self, config: DaemonConfig) -> None:
        """Take note that *config* is in force; after a reload that failed, the old one."""

    async def stopping(self) -> None:
        """Take note that the stop has begun: sessions go on, and new clients are not admitted."""

    async def stop(self) -> None:
        """End; the server has stopped."""


def metrics_name(address: Address, number: int) -> str:
    """Return the name by which an upgrade hands over a socket for metrics."""
    return f"metrics {address} {number}"
