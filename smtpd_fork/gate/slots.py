"""Slots: the connection slots of a gate."""

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
    """The connection slots of a gate. The gate's lock guards them.

    :param clock: of the gate
    :ivar tickets: one ticket for each slot in use
    :ivar paused: whether no client is admitted
    :ivar share: the gate's share in a fleet; None: it is in no fleet
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.tickets: set[Ticket] = set()
        self.paused = False
        self.share: FleetShare | None = None
        self._limit = self._open_to_all = 0

    def change(self, limits: Limits) -> None:
        """Apply the number of slots in *limits*; slots in use are not affected."""
        self._limit, self._open_to_all = limits.limit_connections, limits.open_to_all

    def _not_granted(self) -> int:
        """Return how many slots of the limit the fleet does not grant."""
        if self.share is None:
            return 0
        return self._limit - self.share.limit(self._limit, self._clock())

    @property
    def free(self) -> int:
        """The number of free slots, including reserved ones; negative after a limit was lowered."""
        return 0 if self.paused else self._limit - self._not_granted() - len(self.tickets)

    @property
    def crowded(self) -> bool:
        """Whether no slot is free, or only slots that are reserved for exempt clients."""
        return self.paused or len(self.tickets) >= self._open_to_all - self._not_granted()

    @property
    def stressed(self) -> bool:
        """Whether slots are short: at least three quarters of them are in use."""
        if self.share is not None and self.share.stressed:
            return True
        return 4 * len(self.tickets) >= 3 * self._open_to_all

    def full_for(self, client: Client) -> Full | None:
        """Return the verdict on a client if there is no free slot for it, else None."""
        if not self.paused and len(self.tickets) < client.limit - self._not_granted():
            return None
        return self.full(client.limit)

    def full(self, limit: int | None = None) -> Full:
        """Return the verdict on a client without a slot, and request a slot of the fleet.

        :param limit: the limit for this client; default: the limit for exempt clients
        """
        limit, share = limit or self._limit, self.share
        if share is None or self.paused or len(self.tickets) >= limit:
            return Full(len(self.tickets) + 1, limit, self.paused)
        share.wake(True)
        return Full(share.connections + 1, share.connections, scope="fleet")
