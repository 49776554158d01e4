"""FleetShare: the data that a gate and its node of a fleet exchange. Plain data.

The gate does no I/O. :mod:`smtpd_fork.fleet` writes the answers of the fleet here, and the gate
reads them; the gate writes its counts here, and :mod:`smtpd_fork.fleet` sends them to the fleet.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from threading import Lock

    from smtpd_fork.gate.ticket import Ticket
    from smtpd_fork.gate.verdict import Refusal

__all__ = ["KNOWN_SECONDS", "FleetShare", "OverLimit"]

KNOWN_SECONDS = 0.25
"""How long a key that was over its limit is refused without asking the fleet again."""

WAIT_SECONDS = 1.0
"""How long a slot is requested for a client that was refused, as it will connect again."""

MAX_KNOWN = 4096
"""Maximum number of keys that are remembered as over their limits."""


Answered: TypeAlias = "Callable[[Refusal | None], None]"
Ask: TypeAlias = "Callable[[Ticket, Answered], object]"


class OverLimit(NamedTuple):
    """The count of a key that is over its limit in the fleet.

    :ivar until: when to ask the fleet again, in seconds of the gate's clock
    :ivar sessions: the count, including the client that was refused
    """

    until: float
    sessions: int


class FleetShare:
    """The share of a gate in a fleet. The gate's lock guards it.

    :param lock: of the gate
    :param connections: maximum sessions of all nodes together; 0: no limit
    :param processes: number of processes that divide the connection slots. With more than one, the
        fleet also checks the limits of ``max_from_net`` that are shares of all slots
    :ivar slots: how many of the fleet's slots the gate may use
    :ivar until: end of the lease of these slots, in seconds of the gate's clock
    :ivar local_slots: how many slots the gate may use while the fleet is out of reach; None: it is
        not
    :ivar stressed: whether three quarters of *connections* are in use
    :ivar waits_until: until when this gate wants a slot for clients that it has refused, in seconds
        of its clock
    :ivar others_wait: whether clients of other nodes wait for a slot
    :ivar closing: whether the gate admits no more clients, so that other nodes get its free slots
    :ivar held: sessions by key, including those with a pending question
    :ivar changed: keys whose count may differ from the fleet's
    :ivar over: keys that were over their limits a moment ago
    :ivar refused_sessions: by key, the number of sessions that the fleet has refused, and that
        have not ended yet
    :ivar owner: the object that communicates with the fleet
    :ivar wake: called when there are counts to send; with True if a client waits for a slot
    :ivar ask: called with a ticket, and a callback for the verdict of the fleet on its client, in a
        thread with a running loop. It returns a refusal if the client is refused without a question
    """

    def __init__(self, lock: Lock, connections: int = 0, processes: int = 1) -> None:
        self.lock = lock
        self.connections = connections
        self.processes = processes
        self.slots = 0
        self.until = -math.inf
        self.local_slots: int | None = None
        self.stressed = False
        self.waits_until = -math.inf
        self.others_wait = False
        self.closing = False
        self.held: dict[str, int] = {}
        self.changed: dict[str, None] = {}  # in the order of the changes
        self.over: dict[str, OverLimit] = {}
        self.refused_sessions: dict[str, int] = {}
        self.owner: object = None
        self.wake: Callable[[bool], None] = _ignore_wake
        self.ask: Ask = _ignore_question

    def client_refused(self, now: float) -> None:
        """Request a slot, as a client was refused without one."""
        self.waits_until = now + WAIT_SECONDS
        self.wake(True)

    def slot_released(self) -> None:
        """Give a free slot back to the fleet if another node waits for one."""
        if self.others_wait:
            self.wake(True)

    def limit(self, own: int, now: float) -> int:
        """Return the maximum of sessions, at most *own*, the limit of the gate.

        After the end of the lease it is 0 until the fleet answers, for example in a process that
        was suspended: other nodes may use the slots by now.
        """
        if not self.connections:
            return own
        if now < self.until:
            return min(own, self.slots)
        return 0 if self.local_slots is None else min(own, self.local_slots)

    def over_limit(self, key: str, now: float) -> OverLimit | None:
        """Return the count of a key that was over its limit a moment ago, or None."""
        known = self.over.get(key)
        if known is not None and known.until <= now:
            del self.over[key]
            return None
        return known

    def mark_over(self, key: str, count: int, now: float) -> None:
        """Remember for :data:`KNOWN_SECONDS` that *key* is over its limit."""
        if len(self.over) >= MAX_KNOWN:
            self.over.clear()
        self.over[key] = OverLimit(now + KNOWN_SECONDS, count)

    def enter(self, key: str) -> None:
        """Count a session of *key*."""
        self.held[key] = self.held.get(key, 0) + 1
        self._change(key)

    def leave(self, key: str) -> None:
        """Uncount a session of *key*."""
        if key in self.refused_sessions:  # the fleet has not counted it, so no slot becomes free
            self._end_refused(key)
        else:
            self.over.pop(key, None)
        left = self.held[key] - 1
        if left:
            self.held[key] = left
        else:
            del self.held[key]
        self._change(key)

    def mark_refused(self, key: str) -> None:
        """Record that the fleet has refused a session of *key*, unless it has ended already."""
        refused = self.refused_sessions.get(key, 0)
        if refused < self.held.get(key, 0):
            self.refused_sessions[key] = refused + 1

    def _end_refused(self, key: str) -> None:
        left = self.refused_sessions[key] - 1
        if left:
            self.refused_sessions[key] = left
        else:
            del self.refused_sessions[key]

    def _change(self, key: str) -> None:
        if not self.changed:
            self.wake(False)
        self.changed[key] = None

    def recount(self) -> None:
        """Clear the counts: the gate counts its sessions again, perhaps by other keys."""
        self.changed.update(dict.fromkeys(self.held))
        self.held.clear()
        self.over.clear()
        self.refused_sessions.clear()
        self.wake(False)


def _ignore_wake(urgent: bool) -> None:
    """Do nothing: there is no fleet."""


def _ignore_question(ticket: Ticket, answered: Answered) -> None:
    """Do nothing: there is no fleet."""
