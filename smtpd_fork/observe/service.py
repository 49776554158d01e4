"""Service: a background service of the daemon, which lives as long as its server."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping

    from smtpd_fork.config import DaemonConfig
    from smtpd_fork.listeners import Address

__all__ = ["Service", "metrics_name"]


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
