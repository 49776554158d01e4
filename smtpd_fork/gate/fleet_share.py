"""FleetShare: what a fleet allows a gate, and the counts of the gate for the fleet. Plain data.

The gate does no I/O. :mod:`smtpd_fork.fleet` writes here the answers of the fleet, and reads here
the counts for it; the gate reads the one and writes the other.
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
"""How long a slot is wanted for a client that was refused: it will come again."""

MAX_KNOWN = 4096
"""Keys over their limits that are known at once."""


Answered: TypeAlias = "Callable[[Refusal | None], None]"
Ask: TypeAlias = "Callable[[Ticket, Answered], object]"


class OverLimit(NamedTuple):
    """A key that the fleet found over its limit.

    :ivar until: seconds of the gate's clock
    :ivar sessions: with the client that was refused
    """

    until: float
    sessions: int


class FleetShare:
    """The part of a gate in a fleet. The gate's lock guards it.

    :param connections: sessions of the fleet at once; 0: no limit
    :param processes: between which the connections are divided that ``max_from_net`` has shares of;
        with more than one, the fleet is asked about these shares as well
    :ivar slots: how many of these the gate may use
    :ivar until: seconds of the gate's clock; then the slots belong to others
    :ivar alone: slots that hold instead while the fleet is out of reach; None: it is not
    :ivar stressed: whether three quarters of *connections* are in use
    :ivar waits_until: seconds of the gate's clock, up to which this gate wants a slot for clients
        that it has refused
    :ivar others_wait: whether clients of other nodes do
    :ivar closing: whether the gate admits no more, so that its free slots are for others
    :ivar held: sessions by key, also those that the fleet is being asked about
    :ivar changed: keys that may have another count than the fleet has
    :ivar over: keys that were over their limits a moment ago
    :ivar refused_sessions: sessions by key that the fleet has refused, and that will leave
    :ivar owner: the object that talks to the fleet
    :ivar wake: called when there is something to tell; with True if a client waits for it
    :ivar ask: called with a ticket, and a callback for the verdict of the fleet on its client, in a
        thread with a running loop; returns a refusal if the client is refused without being asked
        about
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
        self.wake: Callable[[bool], None] = _nobody
        self.ask: Ask = _nobody_asks

    def client_refused(self, now: float) -> None:
        """Take note that a client was refused for want of a slot."""
        self.waits_until = now + WAIT_SECONDS
        self.wake(True)

    def slot_released(self) -> None:
        """Take note that a slot is free."""
        if self.others_wait:
            self.wake(True)

    def limit(self, own: int, now: float) -> int:
        """Return how many sessions may exist, of the *own* limit of the gate.

        A process that was stopped for a while believes nothing until the fleet has answered: its
        slots may be in use elsewhere.
        """
        if not self.connections:
            return own
        if now < self.until:
            return min(own, self.slots)
        return 0 if self.local_slots is None else min(own, self.local_slots)

    def over_limit(self, key: str, now: float) -> OverLimit | None:
        """Return what is known of a key over its limit; None if nothing is."""
        known = self.over.get(key)
        if known is not None and known.until <= now:
            del self.over[key]
            return None
        return known

    def mark_over(self, key: str, count: int, now: float) -> None:
        """Remember for a moment that *key* is over its limit."""
        if len(self.over) >= MAX_KNOWN:
            self.over.clear()
        self.over[key] = OverLimit(now + KNOWN_SECONDS, count)

    def enter(self, key: str) -> None:
        """Count a session of *key*."""
        self.held[key] = self.held.get(key, 0) + 1
        self._change(key)

    def leave(self, key: str) -> None:
        """Count a session of *key* no longer."""
        if key in self.refused_sessions:  # the fleet refused it: no slot becomes free
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
        """Take note that the fleet has refused a session of *key*, if it has not left already."""
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
        """Forget the counts: the sessions that exist are counted again, by other keys perhaps."""
        self.changed.update(dict.fromkeys(self.held))
        self.held.clear()
        self.over.clear()
        self.refused_sessions.clear()
        self.wake(False)


def _nobody(urgent: bool) -> None:
    """Do nothing: there is no fleet."""


def _nobody_asks(ticket: Ticket, answered: Answered) -> None:
    """Do nothing: there is no fleet."""
