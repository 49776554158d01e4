"""Slots: the connection slots of a gate, those in use and those that there may be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smtpd_fork.gate.verdict import Full

if TYPE_CHECKING:
    from collections.abc import Callable

    from smtpd_fork.gate.client import Client
    from smtpd_fork.gate.fleet_share import FleetShare
    from smtpd_fork.gate.limits import Limits
    from smtpd_fork.gate.ticket import Ticket

__all__ = ["Slots"]


class Slots:
    """The slots of one gate, whose lock guards them.

    :param clock: of the gate
    :ivar inside: tickets, one for each slot in use
    :ivar paused: whether no client is admitted
    :ivar share: the part of the gate in a fleet; None: it is in none
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.inside: set[Ticket] = set()
        self.paused = False
        self.share: FleetShare | None = None
        self._limit = self._open_to_all = 0

    def change(self, limits: Limits) -> None:
        """Have as many slots as *limits* say; those in use stay in use."""
        self._limit, self._open_to_all = limits.limit_connections, limits.open_to_all

    def _missing(self) -> int:
        """Return how many slots of the limit the fleet does not grant."""
        if self.share is None:
            return 0
        return self._limit - self.share.limit(self._limit, self._clock())

    @property
    def free(self) -> int:
        """Slots that are free, reserved ones among them; below 0 after a limit was lowered."""
        return 0 if self.paused else self._limit - self._missing() - len(self.inside)

    @property
    def crowded(self) -> bool:
        """Whether only slots that are reserved for exempt clients are left, or none."""
        return self.paused or len(self.inside) >= self._open_to_all - self._missing()

    @property
    def stressed(self) -> bool:
        """Whether slots are short: three quarters of them, or more, are in use."""
        if self.share is not None and self.share.stressed:
            return True
        return 4 * len(self.inside) >= 3 * self._open_to_all

    def full_for(self, client: Client) -> Full | None:
        """Return the verdict on a client for whom there is no slot; None if there is one."""
        if not self.paused and len(self.inside) < client.limit - self._missing():
            return None
        return self.full(client.limit)

    def full(self, limit: int | None = None) -> Full:
        """Return the verdict on a client that gets no slot; the fleet learns that clients wait.

        :param limit: of the gate for this client; default: that for exempt ones
        """
        limit, share = limit or self._limit, self.share
        if share is None or self.paused or len(self.inside) >= limit:
            return Full(len(self.inside) + 1, limit, self.paused)
        share.wake(True)
        return Full(share.connections + 1, share.connections, scope="fleet")
