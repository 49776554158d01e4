"""Service: the interfaces of a background service of the daemon, and of the observed server."""

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
    """The attributes of a :class:`smtpd_fork.Server` that services use."""

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
        """Maps each DNS blocklist to whether it is in use."""

    @property
    def changed_limits(self) -> Mapping[str, Any]:
        """The limits that were changed at run time and are still in force."""

    async def set_limits(self, **settings: Unpack[GateSettings]) -> str:
        """Change limits until the next reload; return a warning, or an empty string."""

    async def kick(self, chosen: Callable[[Ticket], bool]) -> int:
        """End the chosen sessions, and return their number."""


class Service:
    """A background service: metrics, the control socket, notifications of the service manager.

    The daemon calls these methods in this order, each at most once except :meth:`reloading` and
    :meth:`reloaded`. An exception of :meth:`start` makes the start of the daemon fail; an exception
    of another method is only logged.
    """

    async def start(self) -> None:
        """Start the service; the server is running.

        :raises SmtpdForkError: the service cannot start
        """

    async def serving(self) -> None:
        """Handle the end of a successful start."""

    def sockets(self) -> Mapping[str, socket.socket]:
        """Return the sockets that an upgrade hands over, by unique names."""
        return {}

    async def handed_over(self, pid: int) -> None:
        """Handle an upgrade: process *pid* serves from now on, also on these sockets.

        Sessions of this process continue until they end. Only :meth:`stop` is called after this.
        """

    async def reloading(self) -> None:
        """Handle the start of a reload."""

    async def reloaded(self, config: DaemonConfig) -> None:
        """Handle the end of a reload; *config* is in force, after a failure the previous one."""

    async def stopping(self) -> None:
        """Handle the start of a stop: sessions continue, and new clients are not admitted."""

    async def stop(self) -> None:
        """Stop the service; the server has stopped."""


def metrics_name(address: Address, number: int) -> str:
    """Return the name under which an upgrade hands over a socket for metrics."""
    return f"metrics {address} {number}"
