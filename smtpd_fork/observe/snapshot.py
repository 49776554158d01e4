"""Snapshot: the state of a server at one time, taken without holding up its event loop.

Sessions are counted in slices, and the loop runs other things between two slices. A snapshot is
good for a second, for all that ask in it, so a client that asks all the time costs no more than one
that asks once a second.
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
from smtpd_fork.observe.refusal_history import History

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from smtpd_fork.config import Config
    from smtpd_fork.dialogue import Tally
    from smtpd_fork.gate import Gate, Ticket
    from smtpd_fork.listeners import Listener

__all__ = ["FRESH_SECONDS", "LISTED", "PHASES", "TOP_SOURCES", "Snapshot", "Snapshots", "Watched"]

PHASES = (
    *("arriving", "proxy-header", "dns", "greet-pause", "handshake"),
    *("command", "data", "handler", "closing"),
)
"""What a session can be doing: see :class:`smtpd_fork.gate.Entry`."""

SLICE = 500
"""Sessions counted in one turn of the loop: under a millisecond."""

LISTED = 100
"""Sessions that are listed, the oldest."""

TOP_SOURCES = 10
"""Clients that are listed, those with the most sessions."""

FRESH_SECONDS = 1.0
"""How long a snapshot is good; Prometheus asks every 15 s or more, people every few seconds."""

MINUTE_SECONDS = 60.0


class Watched(Protocol):
    """What is observed: a :class:`smtpd_fork.Server`."""

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
        """The DNS blocklists, and whether each is in use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The state of a server.

    :ivar at: time of the snapshot, in seconds since the epoch
    :ivar uptime: seconds since the server began to serve
    :ivar state: ``starting``, ``serving``, ``paused`` or ``stopping``
    :ivar limit: sessions at once
    :ivar phases: number of sessions by phase, for all of :data:`PHASES`
    :ivar stats: the counts of the gate
    :ivar minutes: refusals by rule in each of the last sixty minutes, the oldest first
    :ivar oldest: the oldest sessions
    :ivar sources: number of clients that have a session
    :ivar top: the clients with most sessions, and how many
    :ivar queues: each listener, and its backlog if the system tells
    :ivar lag: event-loop lag, in seconds
    :ivar zones: the DNS blocklists, and whether each is in use
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
        """Sessions at once."""
        return sum(self.phases.values())


class Snapshots:
    """Takes snapshots of a server.

    :param server: is observed
    :ivar state: ``starting``, ``serving`` or ``stopping``; its owner sets it
    """

    def __init__(self, server: Watched) -> None:
        self.server = server
        self.state = "starting"
        self._begun = time.monotonic()
        self._history = History(server.gate.stats())
        self._minute: asyncio.TimerHandle | None = None
        self._taking: asyncio.Task[Snapshot] | None = None
        self._latest: Snapshot | None = None
        self._good_until = 0.0

    def start(self) -> None:
        """Begin: the server serves, and minutes are counted from now on."""
        self._begun = time.monotonic()
        self.state = "serving"
        self._await_minute()

    def stop(self) -> None:
        """Stop counting minutes."""
        for each in (self._minute, self._taking):
            if each is not None:
                each.cancel()

    def _await_minute(self) -> None:
        self._minute = asyncio.get_running_loop().call_later(MINUTE_SECONDS, self._turn)

    def _turn(self) -> None:
        self._history.turn(self.server.gate.stats())
        self._await_minute()

    @property
    def now(self) -> str:
        """The state; ``paused`` as well."""
        if self.state == "serving" and self.server.gate.paused:
            return "paused"
        return self.state

    async def latest(self) -> Snapshot:
        """Return a snapshot of the last second; calls at the same time share one."""
        if self._latest is not None and time.monotonic() < self._good_until:
            return replace(self._latest, state=self.now)
        if self._taking is None:
            self._taking = asyncio.get_running_loop().create_task(self._take())
            self._taking.add_done_callback(self._taken)
        return await asyncio.shield(self._taking)

    def _taken(self, task: asyncio.Task[Snapshot]) -> None:
        self._taking = None
        if not task.cancelled() and task.exception() is None:
            self._latest = task.result()
            self._good_until = time.monotonic() + FRESH_SECONDS

    async def _take(self) -> Snapshot:
        phases = Counter(dict.fromkeys(PHASES, 0))
        sources: Counter[str] = Counter()
        oldest: list[Ticket] = []
        gate = self.server.gate
        tickets = list(gate.tickets())
        for begin in range(0, len(tickets), SLICE):
            part = tickets[begin : begin + SLICE]
            holders = [ticket.holder for ticket in part]
            phases.update("arriving" if each is None else each.phase for each in holders)
            sources.update(ticket.key or "unix" for ticket in part)
            oldest = sorted([*oldest, *part], key=attrgetter("since"))[:LISTED]
            await asyncio.sleep(0)
        now, stats = time.monotonic(), gate.stats()
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
