"""GateTarpit: the tarpit of a server: whom the gate suspects, and how many may wait."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smtpd_fork.dialogue.tarpit import Tarpit, slow_down

if TYPE_CHECKING:
    from smtpd_fork.gate import Gate, Ticket
    from smtpd_fork.peer_address import Peer
    from smtpd_fork.smtp import Connection

__all__ = ["GateTarpit"]

SHARE = 0.1
"""Of the connection slots, for clients whose replies wait: a tarpit that takes them all would shut
other clients out."""

NEAR_LIMIT = 0.75
"""Share of a client's connections from which on it is slowed down, as with stress."""


class GateTarpit(Tarpit):
    """The tarpit of a server.

    While slots are short nobody waits: each of them is of use to another client.

    :param gate: counts sessions
    :param seconds: the setting ``tarpit``
    """

    __slots__ = ("_gate",)

    def __init__(self, gate: Gate, seconds: float) -> None:
        super().__init__(seconds)
        self._gate = gate

    def room(self) -> int:
        """Return how many sessions may wait at the same time."""
        gate = self._gate
        return 0 if gate.slots.stressed else int(gate.limits.limit_connections * SHARE)

    def excuses(self, peer: Peer) -> bool:
        """Whether a client is not slowed down for its errors."""
        return self._gate.is_exempt(peer)

    def mark(self, connection: Connection, ticket: Ticket) -> None:
        """Slow down the client of a session that begins, if the gate suspects it."""
        suspected = self.seconds and not ticket.client.exempt
        if suspected and (reason := self._suspicion(ticket)):
            slow_down(connection.dialogue, self.seconds, reason)

    def _suspicion(self, ticket: Ticket) -> str:
        """Return why a client is slowed down; empty: it is not."""
        if ticket.listed_by:
            return f"listed by {ticket.listed_by}"
        most = self._gate.limits.max_from_ip
        if most and ticket.key is not None:
            count = self._gate.count_from(ticket.peer)
            if count > most * NEAR_LIMIT:
                return f"{count} of {most} connections of {ticket.key}"
        return ""
