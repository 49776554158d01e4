"""Snapshot: the state of a server at one time, taken without blocking its event loop.

Sessions are counted in slices, and the event loop runs other tasks between two slices. A snapshot
is shared by all requests within a second, so that frequent requests cost no more than one request
per second.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING

from smtpd_fork.fleet.status import fleet_status
from smtpd_fork.gate.ledger import Entry, entry_of
from smtpd_fork.listeners.backlog import Backlog, backlog_of
from smtpd_fork.observe.refusal_history import History
from smtpd_fork.observe.sink_state import SinkState, filter_states, sink_states

if TYPE_CHECKING:
    from smtpd_fork.fleet.status import FleetStatus
    from smtpd_fork.gate import Ticket
    from smtpd_fork.observe.service import Observed

__all__ = [
    "FLEET_DOWN",
    "MAX_LISTED",
    "PHASES",
    "TOP_CLIENTS",
    "VALID_SECONDS",
    "Snapshot",
    "Snapshots",
    "snapshot_of",
]

PHASES = (
    *("arriving", "proxy-header", "fleet", "dns", "greet-pause", "handshake"),
    *("command", "data", "handler", "tarpit", "closing"),
)
"""The phases of a session: see :class:`smtpd_fork.gate.Entry`."""

SLICE = 500
"""Sessions that are counted in one iteration of the event loop, in less than a millisecond."""

MAX_LISTED = 100
"""Maximum number of listed sessions, the oldest ones."""

TOP_CLIENTS = 10
"""Maximum number of listed clients, those with the most sessions."""

FLEET_DOWN = "fleet-down"
"""The state while the fleet is out of reach, and clients are refused for that reason."""

VALID_SECONDS = 1.0
"""How long a snapshot is valid; Prometheus requests it every 15 s or less often, people every few
seconds."""

MINUTE_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The state of a server.

    :ivar at: time of the snapshot, in seconds since the epoch
    :ivar uptime: seconds since the server began to serve
    :ivar state: ``starting``, ``serving``, ``paused``, ``fleet-down`` or ``stopping``
    :ivar phases: number of sessions by phase, for all of :data:`PHASES`
    :ivar limit: maximum number of sessions
    :ivar stats: the counts of the gate
    :ivar messages: number of messages by outcome (see :class:`smtpd_fork.dialogue.tally.Tally`)
    :ivar rejections: commands and messages rejected inside sessions, by reason
    :ivar denied: number of networks that are denied at run time
    :ivar minutes: refusals by rule in each of the last sixty minutes, the oldest first
    :ivar oldest: the oldest sessions
    :ivar clients: number of clients that have a session
    :ivar top: the clients with the most sessions, and the number of their sessions
    :ivar queues: each listener, and its backlog; None if the system does not report it
    :ivar lag: event-loop lag, in seconds
    :ivar zones: maps each DNS blocklist to whether it is in use
    :ivar sinks: the sinks, in order
    :ivar filters: the filters that query other programs, in order
    :ivar fleet: the state of the fleet; None without a fleet
    """

    at: float
    uptime: float
    state: str
    limit: int
    phases: dict[str, int]
    stats: dict[str, int]
    messages: dict[str, int]
    rejections: dict[str, int]
    denied: int
    minutes: list[dict[str, int]]
    oldest: list[Entry]
    clients: int
    top: list[tuple[str, int]]
    queues: list[tuple[str, Backlog | None]]
    lag: float
    zones: dict[str, bool]
    sinks: Sequence[SinkState]
    filters: Sequence[SinkState]
    fleet: FleetStatus | None

    @property
    def sessions(self) -> int:
        """Number of current sessions."""
        return sum(self.phases.values())


class Snapshots:
    """Takes snapshots of a server.

    :ivar state: ``starting``, ``serving`` or ``stopping``; the owner sets it
    :param top: maximum number of listed clients; None: all
    """

    def __init__(self, server: Observed, top: int | None = TOP_CLIENTS) -> None:
        self.server = server
        self._top = top
        self.state = "starting"
        self._started_at = time.monotonic()
        self._history = History(server.gate.stats())
        self._minute: asyncio.TimerHandle | None = None
        self._taking: asyncio.Task[Snapshot] | None = None
        self._latest: Snapshot | None = None
        self._valid_until = 0.0

    def start(self) -> None:
        """Start to count uptime and minutes; the server serves."""
        self._started_at = time.monotonic()
        self.state = "serving"
        self._start_minute()

    def stop(self) -> None:
        """Stop counting minutes."""
        for each in (self._minute, self._taking):
            if each is not None:
                each.cancel()

    def _start_minute(self) -> None:
        self._minute = asyncio.get_running_loop().call_later(MINUTE_SECONDS, self._end_minute)

    def _end_minute(self) -> None:
        self._history.end_minute(self.server.gate.stats())
        self._start_minute()

    @property
    def now(self) -> str:
        """The current state, which may also be ``paused`` or ``fleet-down``."""
        if self.state != "serving":
            return self.state
        return _state_of(self.server)

    async def readiness(self) -> str:
        """Return the current state; it is ``serving`` if new clients are admitted."""
        return self.now

    @property
    def _uptime(self) -> float:
        """Seconds since the server began to serve."""
        return time.monotonic() - self._started_at

    async def latest(self) -> Snapshot:
        """Return a snapshot of the last second; concurrent calls share one."""
        if self._latest is not None and time.monotonic() < self._valid_until:
            return replace(self._latest, state=self.now)
        if self._taking is None:
            self._taking = asyncio.get_running_loop().create_task(self._take())
            self._taking.add_done_callback(self._on_taken)
        return await asyncio.shield(self._taking)

    def _on_taken(self, task: asyncio.Task[Snapshot]) -> None:
        self._taking = None
        if not task.cancelled() and task.exception() is None:
            self._latest = task.result()
            self._valid_until = time.monotonic() + VALID_SECONDS

    async def _take(self) -> Snapshot:
        counts = _SessionCounts(self._top)
        tickets = list(self.server.gate.tickets())
        for begin in range(0, len(tickets), SLICE):
            counts.add(tickets[begin : begin + SLICE])
            await asyncio.sleep(0)
        stats = self.server.gate.stats()
        minutes = self._history.minutes(stats)
        return counts.snapshot(self.server, self.now, stats, self._uptime, minutes)


def snapshot_of(server: Observed) -> Snapshot:
    """Take a snapshot immediately, without the history; may be called in any thread."""
    counts = _SessionCounts()
    counts.add(list(server.gate.tickets()))
    state = _state_of(server) if server.listeners else "starting"
    return counts.snapshot(server, state, server.gate.stats(), 0.0, [])


def _state_of(server: Observed) -> str:
    if server.gate.paused:
        return "paused"
    return "serving" if server.fleet is None or server.fleet.admits else FLEET_DOWN


class _SessionCounts:
    """Counts sessions by phase and by client, and finds the oldest ones."""

    def __init__(self, top: int | None = TOP_CLIENTS) -> None:
        self._top = top
        self.phases = Counter(dict.fromkeys(PHASES, 0))
        self.clients: Counter[str] = Counter()
        self.oldest: list[Ticket] = []

    def add(self, tickets: Sequence[Ticket]) -> None:
        """Count more sessions."""
        holders = [ticket.holder for ticket in tickets]
        self.phases.update("arriving" if each is None else each.phase for each in holders)
        self.clients.update(ticket.key or "unix" for ticket in tickets)
        self.oldest = sorted([*self.oldest, *tickets], key=attrgetter("since"))[:MAX_LISTED]

    def snapshot(
        self,
        server: Observed,
        state: str,
        stats: dict[str, int],
        uptime: float,
        minutes: list[dict[str, int]],
    ) -> Snapshot:
        """Return the state of the server with these sessions."""
        gate, now = server.gate, time.monotonic()
        return Snapshot(
            at=time.time(),
            uptime=uptime,
            state=state,
            limit=gate.limits.limit_connections,
            phases=dict(self.phases),
            stats=stats,
            messages=server.tally.outcomes(),
            rejections=server.tally.rejections.by_reason(),
            denied=len(gate.denials),
            minutes=minutes,
            oldest=[entry_of(ticket, now) for ticket in self.oldest],
            clients=len(self.clients),
            top=heapq.nlargest(
                self._top or len(self.clients), self.clients.items(), key=itemgetter(1, 0)
            ),
            queues=[(str(each), backlog_of(each.sock)) for each in server.listeners],
            lag=gate.load.lag,
            zones=dict(server.zones),
            sinks=sink_states(server),
            filters=filter_states(server),
            fleet=fleet_status(server.fleet),
        )
