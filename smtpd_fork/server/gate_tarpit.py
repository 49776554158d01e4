"""GateTarpit: the tarpit of a server: which clients are slowed down, and how many at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smtpd_fork.dialogue.tarpit import Tarpit, slow_down

if TYPE_CHECKING:
    from smtpd_fork.gate import Gate, Ticket
    from smtpd_fork.peer_address import Peer
    from smtpd_fork.smtp import Connection

__all__ = ["GateTarpit"]

SHARE = 0.1
"""Maximum share of the connection slots for clients that are slowed down; without it, a tarpit
could use all slots."""

NEAR_LIMIT = 0.75
"""A client with more than this share of its maximum of connections is slowed down; the same share
of slots starts stress."""


class GateTarpit(Tarpit):
    """The tarpit of a server; while few slots are free, no client is slowed down.

    :param gate: counts sessions
    :param seconds: the setting ``tarpit``
    """

    __slots__ = ("_gate",)

    def __init__(self, gate: Gate, seconds: float) -> None:
        super().__init__(seconds)
        self._gate = gate

    def capacity(self) -> int:
        """Return the maximum number of sessions that may be delayed at the same time."""
        gate = self._gate
        return 0 if gate.slots.stressed else int(gate.limits.limit_connections * SHARE)

    def exempts(self, peer: Peer) -> bool:
        """Whether a client is exempt from delays after errors."""
        return self._gate.is_exempt(peer)

    def mark(self, connection: Connection, ticket: Ticket) -> None:
        """Slow down the client of a new session if it is listed, or near its limit of sessions."""
        suspected = self.seconds and not ticket.client.exempt
        if suspected and (reason := self._suspicion(ticket)):
            slow_down(connection.dialogue, self.seconds, reason)

    def _suspicion(self, ticket: Ticket) -> str:
        """Return the reason to slow a client down; empty if there is none."""
        if ticket.listed_by:
            return f"listed by {ticket.listed_by}"
        maximum = self._gate.limits.max_from_ip
        if maximum and ticket.key is not None:
            count = self._gate.count_from(ticket.peer)
            if count > maximum * NEAR_LIMIT:
                return f"{count} of {maximum} connections of {ticket.key}"
        return ""
