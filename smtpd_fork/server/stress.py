"""Stress: while few connection slots are free, ends the sessions of clients that do not use them.

When three quarters of the slots are in use, a client may be idle only for a few seconds, as in
Postfix (STRESS_README). When no slot is free and clients wait for one, the same time limit applies
to clients without progress: NOOP, or starting a transaction again and again, is no progress. One
session is ended for each waiting client, first the one that has been without progress for the
longest time.

A session is not ended while a message is received, or while a handler works.
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

SHARE_PER_CHECK = 0.1
"""Maximum share of the slots that one check frees: that takes a few milliseconds."""

TEXT = "Too long without progress while others wait, try again later"


class Stress:
    """Ends idle sessions of one server under stress; the server's sweep calls :meth:`check`.

    :param gate: reports whether few slots are free
    :param refuser: counts and logs the clients whose sessions are ended
    :ivar seconds: time limit for idle clients under stress; 0: no special limit
    """

    def __init__(self, gate: Gate, refuser: Refuser, seconds: float) -> None:
        self._gate = gate
        self._refuser = refuser
        self.seconds = seconds
        self._was_active = False

    @property
    def active(self) -> bool:
        """Whether few slots are free, and a time limit for that case is configured."""
        return self.seconds > 0 and self._gate.slots.stressed

    def shorten(self, seconds: float) -> float:
        """Return the time limit *seconds*, shortened under stress."""
        return min(seconds, self.seconds) if self.active else seconds

    def check(self, now: float, sessions: Sessions, acceptor: Acceptor) -> None:
        """Under stress, end the sessions whose time limit has passed by *now*.

        :param acceptor: reports the number of waiting clients
        """
        waiting = acceptor.waiting()  # called in any case, as each call resets the count
        if self.active is not self._was_active:
            self._change_state()
        if not self._was_active:
            return
        stuck, closing = self._check_sessions(sessions, now)
        if not self._gate.slots.crowded or self._gate.paused:
            return
        maximum = max(1, math.ceil(self._gate.limits.limit_connections * SHARE_PER_CHECK))
        wanted = min(maximum, waiting - closing)
        for seconds, _, connection, ticket in heapq.nlargest(wanted, stuck):
            self._end(connection, ticket, seconds)

    def _change_state(self) -> None:
        self._was_active = not self._was_active
        gate = self._gate
        if self._was_active:
            text = "stress: %d of %d slots are in use, idle clients are ended after %g s"
            log.warning(text, gate.count, gate.limits.limit_connections, self.seconds)
        else:
            log.warning("stress is over: %d slots are in use", gate.count)

    def _check_sessions(
        self, sessions: Sessions, now: float
    ) -> tuple[list[tuple[float, str, Connection, Ticket]], int]:
        """End idle sessions; return sessions without progress, and the number that are closing."""
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
        connection.end_for_resources(
            refusal.reply(connection.shared.hostname), f"{seconds:.1f} s without progress"
        )
