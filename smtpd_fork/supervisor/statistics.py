"""Metrics and the status page of all processes together.

Each process sends the snapshot and the metrics that it would show alone; the supervisor merges
them. Numbers are added, except those in :data:`CHOOSE`. After the end of a process, its last known
counters stay in the sums, so that no counter decreases.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from smtpd_fork.dialogue.tally import Latency, Tally
from smtpd_fork.fleet.status import FleetStatus
from smtpd_fork.gate import Entry
from smtpd_fork.listeners.backlog import Backlog
from smtpd_fork.observe.metrics import FLEET_METRICS, METRICS, Metrics
from smtpd_fork.observe.service import Observed, Service
from smtpd_fork.observe.sink_state import SinkState
from smtpd_fork.observe.snapshot import (
    FLEET_DOWN,
    MAX_LISTED,
    PHASES,
    TOP_CLIENTS,
    Snapshot,
    Snapshots,
)
from smtpd_fork.peer_address import describe
from smtpd_fork.sanitizer import printable
from smtpd_fork.supervisor.merged_fleet import merged_fleet
from smtpd_fork.supervisor.merged_sinks import merged_sinks, sum_counts

if TYPE_CHECKING:
    from smtpd_fork.supervisor.processes import Processes
    from smtpd_fork.supervisor.serving_process import ServingProcess

__all__ = ["ChildStatistics", "MergedStatistics"]

Value: TypeAlias = Any
"""A number; for a histogram, the counts of its buckets and their sum in seconds."""

Packed: TypeAlias = dict[str, list[tuple[list[str], Value]]]
"""The values of each metric by its name, each value with the values of its labels."""

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
"""Metrics that are not added, each with the function that chooses one of the values."""

STATISTICS_SECONDS = 5.0
"""Timeout for the metrics of a process; after it the last known ones are used. Prometheus waits
10 s."""

READINESS_SECONDS = 0.5
"""How long a readiness probe waits for a process that does not answer, as the others may serve.
Kubernetes waits 1 s."""

_ROWS = (*METRICS, *FLEET_METRICS)

_GROWING = {row.name for row in _ROWS if row.kind in {"counter", "histogram"}}

_HISTOGRAMS = {row.name for row in _ROWS if row.kind == "histogram"}

_LABELLED = {row.name for row in _ROWS if row.label}


# -- in a process ------------------------------------------------------------------------------


class ChildStatistics(Service):
    """Collects the metrics and the snapshot of this process for its supervisor."""

    def __init__(self, server: Observed) -> None:
        self._snapshots = Snapshots(server, top=None)
        self._metrics = Metrics(server.tally)

    async def start(self) -> None:
        """Start the counts per minute."""
        self._snapshots.start()

    async def stopping(self) -> None:
        """Set the state ``stopping``: the process is not ready any more."""
        self._snapshots.state = "stopping"

    async def stop(self) -> None:
        """Stop the counts per minute."""
        self._snapshots.stop()

    async def collect(self) -> Any:
        """Return the snapshot and the values of the metrics, as plain data."""
        snapshot = await self._snapshots.latest()
        return {
            "snapshot": replace(
                snapshot, oldest=[_with_text_addresses(each) for each in snapshot.oldest]
            ),
            "values": _packed(self._metrics.values(snapshot)),
        }


def _with_text_addresses(entry: Entry) -> Entry:
    """Return *entry* with its addresses as text."""
    sender = None if entry.sender is None else describe(entry.sender)
    return replace(
        entry, peer=describe(entry.peer), sender=sender, helo=printable(entry.helo, None)
    )


def _packed(values: Mapping[str, Any]) -> Packed:
    return {
        row.name: [
            ([labels] if isinstance(labels, str) else list(labels), _packed_value(value))
            for labels, value in _by_labels(row.name, values[row.name])
        ]
        for row in _ROWS
        if row.kind != "info" and row.name in values
    }


def _by_labels(name: str, value: Any) -> Iterable[tuple[str | tuple[str, ...], Any]]:
    some: Iterable[tuple[str | tuple[str, ...], Any]]
    some = value.items() if name in _LABELLED | _HISTOGRAMS else [("", value)]
    return some


def _packed_value(value: Any) -> Value:
    return (value.counts, value.total) if isinstance(value, Latency) else value


# -- in the supervisor -------------------------------------------------------------------------


class MergedStatistics(Snapshots):
    """Merges the snapshots and the metrics of all processes."""

    def __init__(self, processes: Processes) -> None:
        super().__init__(processes)
        self._processes = processes
        self._metrics = Metrics(Tally())
        self._last: dict[ServingProcess, Any] = {}
        self._fleet_down = False
        self._ended: list[Any] = []
        """The totals of all processes that have ended, merged: at most one item."""
        self._others: list[Any] = []
        """The answers of other supervisors' processes."""

    @property
    def now(self) -> str:
        """The state: ``serving`` while at least one process serves."""
        if not self._processes.current and not self._processes.upgrades.new_serves:
            return "starting"
        return FLEET_DOWN if super().now == "serving" and self._fleet_down else super().now

    async def readiness(self) -> str:
        """Return the state, after asking the processes."""
        with suppress(TimeoutError):
            async with asyncio.timeout(READINESS_SECONDS):
                await self.latest()
        return self.now

    async def _take(self) -> Snapshot:
        answers = await self._processes.ask_all("figures", seconds=STATISTICS_SECONDS)
        for process in self._last.keys() - set(self._processes.current):
            self._ended = [_totals([*self._ended, self._last.pop(process)])]
        self._last |= answers
        states = [each["snapshot"]["state"] for each in answers.values()]
        self._fleet_down = bool(states) and set(states) == {FLEET_DOWN}
        others = await self._processes.upgrades.answers("figures", None)
        self._others = [_sessions_only(each) for each in others.values()]
        parts = [_snapshot(each["snapshot"]) for each in self._parts]
        limit = self._processes.limits.limit_connections
        return replace(_merged_snapshot(parts, self._uptime, self.now), limit=limit)

    @property
    def _parts(self) -> list[Any]:
        return [*self._ended, *self._last.values(), *self._others]

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
        found: dict[tuple[str, ...], list[Value]] = {}
        for part in parts:
            for labels, value in part.get(name, ()):
                found.setdefault(tuple(labels), []).append(value)
        choose = CHOOSE.get(name, sum)
        merge = _merged_histogram if name in _HISTOGRAMS else choose
        merged[name] = [(list(labels), merge(values)) for labels, values in found.items()]
    return merged


def _merged_histogram(histograms: Sequence[Value]) -> Value:
    counts = [sum(column) for column in zip(*(counts for counts, _ in histograms), strict=True)]
    return counts, sum(total for _, total in histograms)


def _unpacked(packed: Packed) -> dict[str, object]:
    unpacked: dict[str, object] = {}
    for name, values in packed.items():
        by_labels = {
            labels[0] if len(labels) == 1 else tuple(labels): _latency(value)
            if name in _HISTOGRAMS
            else value
            for labels, value in values
        }
        single = name not in _LABELLED | _HISTOGRAMS
        unpacked[name] = by_labels[""] if single else by_labels
    return unpacked


def _latency(value: Value) -> Latency:
    latency = Latency()
    latency.counts, latency.total = list(value[0]), value[1]
    return latency


_EMPTY: dict[str, Any] = {"minutes": [], "queues": [], "zones": {}, "sinks": [], "filters": []}
_EMPTY |= {"limit": 0, "denied": 0, "lag": 0.0, "fleet": None}


def _totals(parts: Sequence[Any]) -> Any:
    """Return the counters of processes that have ended, without their sessions and gauges."""
    merged = _merged_values([part["values"] for part in parts])
    snapshots = [part["snapshot"] for part in parts]
    counts = {
        name: dict(sum_counts(each[name] for each in snapshots))
        for name in ("stats", "messages", "rejections")
    }
    sessions: dict[str, Any] = {"phases": {}, "oldest": [], "top": []}
    return {
        "snapshot": {**snapshots[-1], **_EMPTY, **sessions, **counts},
        "values": {name: values for name, values in merged.items() if name in _GROWING},
    }


def _sessions_only(part: Any) -> Any:
    """Return the sessions of another supervisor's process, without its counters.

    Such a process ends with the upgrade: the sums would first rise and then fall by its counters.
    """
    counts: dict[str, Any] = {"stats": {}, "messages": {}, "rejections": {}}
    values = {name: each for name, each in part["values"].items() if name == "smtpd_fork_sessions"}
    return {"snapshot": {**part["snapshot"], **_EMPTY, **counts}, "values": values}


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
            "fleet": msgspec.convert(raw["fleet"], FleetStatus | None),
        }
    )


def _merged_snapshot(parts: Sequence[Snapshot], uptime: float, state: str) -> Snapshot:
    clients = sum_counts(dict(part.top) for part in parts)
    oldest = sorted((entry for part in parts for entry in part.oldest), key=lambda e: e.since)
    hours = [part.minutes for part in parts if part.minutes]
    minutes = [dict(sum_counts(some)) for some in zip(*hours, strict=True)]
    queues = next((part.queues for part in parts if part.queues), [])
    zones: dict[str, bool] = {}
    for part in parts:
        zones |= {zone: on and zones.get(zone, True) for zone, on in part.zones.items()}
    return Snapshot(
        at=time.time(),
        uptime=uptime,
        state=state,
        limit=sum(part.limit for part in parts),
        phases={**dict.fromkeys(PHASES, 0), **sum_counts(part.phases for part in parts)},
        stats={"admitted": 0, "refused": 0, **sum_counts(part.stats for part in parts)},
        messages={**Tally().outcomes(), **sum_counts(part.messages for part in parts)},
        rejections=dict(sum_counts(part.rejections for part in parts)),
        denied=max((part.denied for part in parts), default=0),
        minutes=minutes,
        oldest=oldest[:MAX_LISTED],
        clients=len(clients),
        top=clients.most_common(TOP_CLIENTS),
        queues=queues,
        lag=max((part.lag for part in parts), default=0.0),
        zones=zones,
        sinks=merged_sinks([part.sinks for part in parts]),
        filters=merged_sinks([part.filters for part in parts]),
        fleet=merged_fleet(part.fleet for part in parts),
    )
