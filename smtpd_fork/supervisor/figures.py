"""Figures: metrics and the status page of all processes, added up.

A process sends the snapshot and the metrics that it would show; the supervisor merges them. Numbers
are added, but for those in :data:`CHOOSE`. What a process had counted when it was last asked stays
in the sums after its end, so that no counter goes down.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from smtpd_fork.dialogue.tally import Latency, Tally
from smtpd_fork.fleet.figures import Figures
from smtpd_fork.gate import Entry
from smtpd_fork.listeners.backlog import Backlog
from smtpd_fork.observe.metrics import METRICS, OF_A_FLEET, Metrics
from smtpd_fork.observe.service import Observed, Service
from smtpd_fork.observe.sink_state import SinkState
from smtpd_fork.observe.snapshot import FLEET_DOWN, LISTED, PHASES, TOP_CLIENTS, Snapshot, Snapshots
from smtpd_fork.peer_address import describe
from smtpd_fork.sanitizer import printable
from smtpd_fork.supervisor.merged_fleet import merged_fleet
from smtpd_fork.supervisor.merged_sinks import added, merged_sinks

if TYPE_CHECKING:
    from smtpd_fork.supervisor.processes import Processes
    from smtpd_fork.supervisor.serving_process import ServingProcess

__all__ = ["ChildFigures", "MergedFigures"]

Figure: TypeAlias = Any
"""A number, or for a histogram the counts of its buckets and their sum in seconds."""

Packed: TypeAlias = dict[str, list[tuple[list[str], Figure]]]
"""By the name of a metric: its figures, each with the values of its labels."""

CHOOSE: dict[str, Callable[[Iterable[float]], float]] = {
    "smtpd_fork_denied_networks": max,  # all have the same
    "smtpd_fork_ready": max,
    "smtpd_fork_fleet_state": max,
    "smtpd_fork_fleet_nodes": max,
    "smtpd_fork_sink_down_since_timestamp_seconds": max,
    "smtpd_fork_filter_down_since_timestamp_seconds": max,
    "smtpd_fork_accept_queue": max,  # it is one socket
    "smtpd_fork_accept_queue_limit": max,
    "smtpd_fork_dnsbl_zone_enabled": min,
    "process_start_time_seconds": min,
}
"""Metrics that are not added."""

_ROWS = (*METRICS, *OF_A_FLEET)

_GROWING = {row.name for row in _ROWS if row.kind in {"counter", "histogram"}}

_HISTOGRAMS = {row.name for row in _ROWS if row.kind == "histogram"}

_LABELLED = {row.name for row in _ROWS if row.label}


# -- in a process ------------------------------------------------------------------------------


class ChildFigures(Service):
    """The figures of a process."""

    def __init__(self, server: Observed) -> None:
        self._snapshots = Snapshots(server, top=None)
        self._metrics = Metrics(server.tally)

    async def start(self) -> None:
        """Begin to count minutes."""
        self._snapshots.start()

    async def stopping(self) -> None:
        """Be ready no more."""
        self._snapshots.state = "stopping"

    async def stop(self) -> None:
        """End."""
        self._snapshots.stop()

    async def figures(self) -> Any:
        """Return the figures."""
        snapshot = await self._snapshots.latest()
        return {
            "snapshot": replace(snapshot, oldest=[_plain(each) for each in snapshot.oldest]),
            "values": _packed(self._metrics.values(snapshot)),
        }


def _plain(entry: Entry) -> Entry:
    """Return an entry with texts alone."""
    sender = None if entry.sender is None else describe(entry.sender)
    return replace(
        entry, peer=describe(entry.peer), sender=sender, helo=printable(entry.helo, None)
    )


def _packed(values: Mapping[str, Any]) -> Packed:
    return {
        row.name: [
            ([labels] if isinstance(labels, str) else list(labels), _figure(figure))
            for labels, figure in _by_labels(row.name, values[row.name])
        ]
        for row in _ROWS
        if row.kind != "info" and row.name in values
    }


def _by_labels(name: str, value: Any) -> Iterable[tuple[str | tuple[str, ...], Any]]:
    some: Iterable[tuple[str | tuple[str, ...], Any]]
    some = value.items() if name in _LABELLED | _HISTOGRAMS else [("", value)]
    return some


def _figure(value: Any) -> Figure:
    return (value.counts, value.total) if isinstance(value, Latency) else value


# -- in the supervisor -------------------------------------------------------------------------


class MergedFigures(Snapshots):
    """The snapshots of all processes as one, and their metrics."""

    def __init__(self, processes: Processes) -> None:
        super().__init__(processes)
        self._processes = processes
        self._metrics = Metrics(Tally())
        self._last: dict[ServingProcess, Any] = {}
        self._fleet_down = False
        self._gone: list[Any] = []
        """What remains of processes that have ended; at most one, which has all of them."""
        self._others: list[Any] = []
        """Of the processes of other supervisors."""

    @property
    def now(self) -> str:
        """The state: ``serving`` as soon, and as long, as one process serves."""
        if not self._processes.current and not self._processes.upgrades.replaces:
            return "starting"
        return FLEET_DOWN if super().now == "serving" and self._fleet_down else super().now

    async def readiness(self) -> str:
        """Return the state, as the processes have it now."""
        await self.latest()
        return self.now

    async def _take(self) -> Snapshot:
        answers = await self._processes.ask_all("figures")
        for process in self._last.keys() - set(self._processes.current):
            self._gone = [_remains([*self._gone, self._last.pop(process)])]
        self._last |= answers
        states = [each["snapshot"]["state"] for each in answers.values()]
        self._fleet_down = bool(states) and set(states) == {FLEET_DOWN}
        others = await self._processes.upgrades.answers("figures", None)
        self._others = [_present(each) for each in others.values()]
        parts = [_snapshot(each["snapshot"]) for each in self._parts]
        limit = self._processes.limits.limit_connections
        return replace(_merged_snapshot(parts, self._seconds, self.now), limit=limit)

    @property
    def _parts(self) -> list[Any]:
        return [*self._gone, *self._last.values(), *self._others]

    async def values(self) -> dict[str, object]:
        """Return the values of the metrics, as :meth:`Metrics.values` does."""
        snapshot = await self.latest()
        own = self._metrics.values(snapshot)
        process = _packed({n: v for n, v in own.items() if n.startswith("process_")})
        parts = [each["values"] for each in self._parts]
        values = _unpacked(_merged_values([*parts, process]))
        return {
            **values,
            "smtpd_fork_build_info": own["smtpd_fork_build_info"],
            "smtpd_fork_clients": snapshot.clients,
            "smtpd_fork_sessions_limit": snapshot.limit,
            "smtpd_fork_processes": self._processes.accepting,
            "smtpd_fork_processes_replaced_total": self._processes.replaced,
        }


def _merged_values(parts: Sequence[Packed]) -> Packed:
    merged: Packed = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        found: dict[tuple[str, ...], list[Figure]] = {}
        for part in parts:
            for labels, figure in part.get(name, ()):
                found.setdefault(tuple(labels), []).append(figure)
        choose = CHOOSE.get(name, sum)
        merge = _added if name in _HISTOGRAMS else choose
        merged[name] = [(list(labels), merge(figures)) for labels, figures in found.items()]
    return merged


def _added(histograms: Sequence[Figure]) -> Figure:
    counts = [sum(column) for column in zip(*(counts for counts, _ in histograms), strict=True)]
    return counts, sum(total for _, total in histograms)


def _unpacked(packed: Packed) -> dict[str, object]:
    values: dict[str, object] = {}
    for name, figures in packed.items():
        by_labels = {
            labels[0] if len(labels) == 1 else tuple(labels): _latency(figure)
            if name in _HISTOGRAMS
            else figure
            for labels, figure in figures
        }
        single = name not in _LABELLED | _HISTOGRAMS
        values[name] = by_labels[""] if single else by_labels
    return values


def _latency(figure: Figure) -> Latency:
    latency = Latency()
    latency.counts, latency.total = list(figure[0]), figure[1]
    return latency


_NOTHING: dict[str, Any] = {"minutes": [], "queues": [], "zones": {}, "sinks": [], "filters": []}
_NOTHING |= {"limit": 0, "denied": 0, "lag": 0.0, "fleet": None}


def _remains(parts: Sequence[Any]) -> Any:
    """Return what stays of processes that have ended: what they have counted."""
    merged = _merged_values([part["values"] for part in parts])
    snapshots = [part["snapshot"] for part in parts]
    counts = {
        name: dict(added(each[name] for each in snapshots))
        for name in ("stats", "messages", "rejections")
    }
    sessions: dict[str, Any] = {"phases": {}, "oldest": [], "top": []}
    return {
        "snapshot": {**snapshots[-1], **_NOTHING, **sessions, **counts},
        "values": {name: figures for name, figures in merged.items() if name in _GROWING},
    }


def _present(part: Any) -> Any:
    """Return the sessions alone: what an old program has counted would come and go with it."""
    counts: dict[str, Any] = {"stats": {}, "messages": {}, "rejections": {}}
    values = {name: each for name, each in part["values"].items() if name == "smtpd_fork_sessions"}
    return {"snapshot": {**part["snapshot"], **_NOTHING, **counts}, "values": values}


def _snapshot(raw: dict[str, Any]) -> Snapshot:
    """Return the snapshot that a process has sent."""
    return Snapshot(
        **{
            **raw,
            "oldest": [Entry(**each) for each in raw["oldest"]],
            "top": [(client, count) for client, count in raw["top"]],
            "queues": [(name, queue and Backlog(*queue)) for name, queue in raw["queues"]],
            "sinks": msgspec.convert(raw["sinks"], list[SinkState]),
            "filters": msgspec.convert(raw["filters"], list[SinkState]),
            "fleet": msgspec.convert(raw["fleet"], Figures | None),
        }
    )


def _merged_snapshot(parts: Sequence[Snapshot], uptime: float, state: str) -> Snapshot:
    clients = added(dict(part.top) for part in parts)
    oldest = sorted((entry for part in parts for entry in part.oldest), key=lambda e: e.since)
    hours = [part.minutes for part in parts if part.minutes]
    minutes = [dict(added(some)) for some in zip(*hours, strict=True)]
    queues = next((part.queues for part in parts if part.queues), [])
    zones: dict[str, bool] = {}
    for part in parts:
        zones |= {zone: on and zones.get(zone, True) for zone, on in part.zones.items()}
    return Snapshot(
        at=time.time(),
        uptime=uptime,
        state=state,
        limit=sum(part.limit for part in parts),
        phases={**dict.fromkeys(PHASES, 0), **added(part.phases for part in parts)},
        stats={"admitted": 0, "refused": 0, **added(part.stats for part in parts)},
        messages={**Tally().outcomes(), **added(part.messages for part in parts)},
        rejections=dict(added(part.rejections for part in parts)),
        denied=max((part.denied for part in parts), default=0),
        minutes=minutes,
        oldest=oldest[:LISTED],
        clients=len(clients),
        top=clients.most_common(TOP_CLIENTS),
        queues=queues,
        lag=max((part.lag for part in parts), default=0.0),
        zones=zones,
        sinks=merged_sinks([part.sinks for part in parts]),
        filters=merged_sinks([part.filters for part in parts]),
        fleet=merged_fleet(part.fleet for part in parts),
    )
