"""Stress: while connection slots are short, clients that do nothing with theirs are ended.

From three quarters of the slots on, a client may be idle for a few seconds only, as in Postfix
(STRESS_README). When no slot is left and clients wait for one, a client has as long to get further:
to say NOOP, or to begin again and again, is no progress. The client that is stuck longest is ended
first, and one for each client that waits.

A client is not ended while its message comes, or while a handler works.
"""

from __future__ import annotations

import heapq
import logging
import math
from typing import TYPE_CHECKING

from smtpd_fork.gate import Refusal

if TYPE_CHECKING:
    from smtpd_fork.gate import Gate, Ticket
    from smtpd_fork.listeners import Acceptor, Refuser
    from smtpd_fork.server.sessions import Sessions
    from smtpd_fork.smtp import Connection

__all__ = ["Stress"]

log = logging.getLogger("smtpd_fork.server")

A_LOOK = 0.1
"""Share of the slots that are cleared at one look: a few milliseconds of work."""

TEXT = "Too long without progress while others wait, try again later"


class Stress:
    """Ends clients of one server; its sweep calls :meth:`look`.

    :param gate: says whether slots are short
    :param refuser: takes note of those that are ended
    :ivar seconds: how long a client may do nothing while they are; 0: as long as ever
    """

    def __init__(self, gate: Gate, refuser: Refuser, seconds: float) -> None:
        self._gate = gate
        self._refuser = refuser
        self.seconds = seconds
        self._told = False

    @property
    def on(self) -> bool:
        """Whether slots are short, and that makes a difference."""
        return self.seconds > 0 and self._gate.slots.stressed

    def shorten(self, seconds: float) -> float:
        """Return a time limit as it is now."""
        return min(seconds, self.seconds) if self.on else seconds

    def look(self, now: float, sessions: Sessions, acceptor: Acceptor) -> None:
        """End the clients whose time is over by *now*.

        :param acceptor: says how many clients wait
        """
        waiting = acceptor.waiting()  # asked in any case: it counts since the last time
        if self.on is not self._told:
            self._tell()
        if not self._told:
            return
        stuck, closing = self._look_at(sessions, now)
        if not self._gate.slots.crowded or self._gate.paused:
            return
        most = max(1, math.ceil(self._gate.limits.limit_connections * A_LOOK))
        wanted = min(most, waiting - closing)
        for seconds, _, connection, ticket in heapq.nlargest(wanted, stuck):
            self._end(connection, ticket, seconds)

    def _tell(self) -> None:
        self._told = not self._told
        gate = self._gate
        if self._told:
            text = "stress: %d of %d slots are in use, idle clients are ended after %g s"
            log.warning(text, gate.count, gate.limits.limit_connections, self.seconds)
        else:
            log.warning("stress is over: %d slots are in use", gate.count)

    def _look_at(
        self, sessions: Sessions, now: float
    ) -> tuple[list[tuple[float, str, Connection, Ticket]], int]:
        """End the sessions that are idle; return those that are stuck, and how many close."""
        stuck: list[tuple[float, str, Connection, Ticket]] = []
        closing = 0
        for connection, ticket in sessions.all():
            phase = connection.phase
            closing += phase == "closing"
            if phase not in {"command", "data"} or ticket.client.exempt:
                continue
            if now - connection.idle_since > self.seconds:
                connection.expired(now)
                closing += 1
            elif phase == "command" and (seconds := now - connection.stuck_since()) > self.seconds:
                stuck.append((seconds, ticket.name(), connection, ticket))
        return stuck, closing

    def _end(self, connection: Connection, ticket: Ticket, seconds: float) -> None:
        refusal = self._refuser.note(
            Refusal(
                "stress",
                ticket.key or "unix",
                math.ceil(seconds),
                round(self.seconds),
                status="4.3.2",
                text=TEXT,
            ),
            ticket.peer,
            ticket.name(),
        )
        connection.make_room(
            refusal.reply(connection.shared.hostname), f"{seconds:.1f} s without progress"
        )
