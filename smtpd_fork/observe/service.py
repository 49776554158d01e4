"""Service: what runs beside the server in the daemon's loop, and shares its life."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping

    from smtpd_fork.config import DaemonConfig
    from smtpd_fork.listeners import Address

__all__ = ["Service", "metrics_name"]


class Service:
    """One thing beside the server: metrics, a control socket, the word to systemd.

    The daemon calls these in this order, each at most once but :meth:`reloading` and
    :meth:`reloaded`. An error in any but :meth:`start` is logged, and hurts nobody.
    """

    async def start(self) -> None:
        """Begin; the server serves.

        :raises SmtpdForkError: it cannot; the start of the daemon fails with it
        """

    async def serving(self) -> None:
        """Take note that the start is over: nothing of it can fail any more."""

    def sockets(self) -> Mapping[str, socket.socket]:
        """Return the sockets that a new process is to go on with, each by a name of its own."""
        return {}

    async def handed_over(self, pid: int) -> None:
        """Take note that process *pid* serves from now on, also on those sockets.

        Sessions that are in stay until they end. No more is heard but :meth:`stop`.
        """

    async def reloading(self) -> None:
        """Take note that a reload has begun."""

    async def reloaded(self, config: DaemonConfig) -> None:
        """Take note that *config* holds from now on; after a reload that failed, as before."""

    async def stopping(self) -> None:
        """Take note that the stop has begun: clients are still in, and no more will be let in."""

    async def stop(self) -> None:
        """End; the server has stopped."""


def metrics_name(address: Address, number: int) -> str:
    """Return by what name a socket for metrics is handed over: an address may have several."""
    return f"metrics {address} {number}"
