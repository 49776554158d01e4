"""Snapshot: how things are with a server now, looked at without holding up its loop.

The sessions are looked at a slice at a time, and the loop has its turn between two slices: ten
times the sessions take ten times as long, and no session waits longer for it. What was found is
good for a second, for whoever asks in it: who asks all the time costs no more than who asks once a
second.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import Counter
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import TYPE_CHECKING, Protocol

from smtpd_fork.gate.ledger import Entry, entry_of
from smtpd_fork.listeners.backlog import Backlog, backlog_of
from smtpd_fork.observe.history import History

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from smtpd_fork.config import Config
    from smtpd_fork.gate import Gate, Ticket
    from smtpd_fork.listeners import Listener
    from smtpd_fork.smtp import Tally

__all__ = ["FRESH_SECONDS", "LISTED", "PHASES", "TOP_SOURCES", "Snapshot", "Snapshots", "Watched"]

PHASES = (
    *("arriving", "proxy-header", "dns", "greet-pause", "handshake"),
    *("command", "data", "handler", "closing"),
)
"""What a session can be doing: see :class:`smtpd_fork.gate.Entry`."""

SLICE = 500
"""Sessions that are looked at in one turn of the loop: under a millisecond."""

LISTED = 100
"""Sessions that are told one by one, the oldest."""

TOP_SOURCES = 10

FRESH_SECONDS = 1.0
"""How long snapshot are good; Prometheus asks every 15 s or more, a person every few seconds."""

MINUTE_SECONDS = 60.0


class Watched(Protocol):
    """What is looked at: a :class:`smtpd_fork.Server`."""

    gate: Gate
    tally: Tally

    @property
    def config(self) -> Config:
        """The settings in force."""

    @property
    def listeners(self) -> Sequence[Listener]:
        """The bound sockets."""

    @property
    def zones(self) -> Mapping[str, bool]:
        """The blocklists, and whether clients are looked up in them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """How things are.

    :ivar at: seconds since the epoch, when this was so
    :ivar uptime: seconds since the server began to serve
    :ivar state: ``starting``, ``serving``, ``paused`` or ``stopping``
    :ivar limit: sessions at once
    :ivar phases: sessions by what they do; all of :data:`PHASES` are there
    :ivar stats: the gate's counts
    :ivar minutes: refusals by rule in each of the last sixty minutes, the oldest first
    :ivar oldest: the sessions that have been in longest
    :ivar sources: how many sources have a session
    :ivar top: the sources with most sessions, and how many
    :ivar queues: each listener, and its backlog if the system tells
    :ivar lag: seconds by which the loop is late
    :ivar zones: the blocklists, and whether clients are looked up in them
    """

    at: float
    uptime: float
    state: str
    limit: int
    phases: dict[str, int]
    stats: dict[str, int]
    minutes: list[dict[str, int]]
    oldest: list[Entry]
    sources: int
    top: list[tuple[str, int]]
    queues: list[tuple[str, Backlog | None]]
    lag: float
    zones: dict[str, bool]

    @property
    def sessions(self) -> int:
        """Sessions now."""
        return sum(self.phases.values())


class Snapshots:
    """Looks at a server for whoever asks.

    :param server: whom to look at
    :ivar state: ``starting``, ``serving`` or ``stopping``; its user sets it
    """

    def __init__(self, server: Watched) -> None:
        self.server = server
        self.state = "starting"
        self._begun = time.monotonic()
        self._history = History(server.gate.stats())
        self._minute: asyncio.TimerHandle | None = None
        self._looking: asyncio.Task[Snapshot] | None = None
        self._facts: Snapshot | None = None
        self._good_until = 0.0

    def start(self) -> None:
        """Begin: the server serves, and minutes are counted from now on."""
        self._begun = time.monotonic()
        self.state = "serving"
        self._await_minute()

    def stop(self) -> None:
        """Count no more."""
        if self._minute is not None:
            self._minute.cancel()
        if self._looking is not None:
            self._looking.cancel()

    def _await_minute(self) -> None:
        self._minute = asyncio.get_running_loop().call_later(MINUTE_SECONDS, self._turn)

    def _turn(self) -> None:
        self._history.turn(self.server.gate.stats())
        self._await_minute()

    @property
    def now(self) -> str:
        """The state, where a gate that is paused is one as well."""
        if self.state == "serving" and self.server.gate.paused:
            return "paused"
        return self.state

    async def latest(self) -> Snapshot:
        """Return how things are, or were within the last second; who asks together is told once."""
        if self._facts is not None and time.monotonic() < self._good_until:
            return replace(self._facts, state=self.now)
        if self._looking is None:
            self._looking = asyncio.get_running_loop().create_task(self._look())
            self._looking.add_done_callback(self._looked)
        return await asyncio.shield(self._looking)

    def _looked(self, task: asyncio.Task[Snapshot]) -> None:
        self._looking = None
        if not task.cancelled() and task.exception() is None:
            self._facts = task.result()
            self._good_until = time.monotonic() + FRESH_SECONDS

    async def _look(self) -> Snapshot:
        gate = self.server.gate
        phases = Counter(dict.fromkeys(PHASES, 0))
        sources: Counter[str] = Counter()
        oldest: list[Ticket] = []
        tickets = list(gate.tickets())
        for begin in range(0, len(tickets), SLICE):
            part = tickets[begin : begin + SLICE]
            for ticket in part:
                holder = ticket.holder
                phases["arriving" if holder is None else holder.phase] += 1
                sources[ticket.key or "unix"] += 1
            oldest = sorted([*oldest, *part], key=attrgetter("since"))[:LISTED]
            await asyncio.sleep(0)
        now = time.monotonic()
        stats = gate.stats()
        return Snapshot(
            at=time.time(),
            uptime=now - self._begun,
            state=self.now,
            limit=gate.limits.limit_connections,
            phases=dict(phases),
            stats=stats,
            minutes=self._history.minutes(stats),
            oldest=[entry_of(ticket, now) for ticket in oldest],
            sources=len(sources),
            top=heapq.nlargest(TOP_SOURCES, sources.items(), key=lambda item: (item[1], item[0])),
            queues=[(str(each), backlog_of(each.sock)) for each in self.server.listeners],
            lag=gate.load.lag,
            zones=dict(self.server.zones),
        )
