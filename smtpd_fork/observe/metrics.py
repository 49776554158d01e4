"""Metrics: the metrics of a server, for Prometheus.

Each metric is a row of :data:`METRICS`; docs/monitoring.md has the same rows. The values of labels
come from this program and its configuration, never from a client or a handler.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from itertools import accumulate
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from prometheus_client import Metric
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from smtpd_fork.dialogue.tally import BOUNDS, AnswerCounts, Latency, Tally, by_class
from smtpd_fork.fleet.status import STATES
from smtpd_fork.gate.statistics import CURES
from smtpd_fork.observe.process import Process
from smtpd_fork.observe.refusal_history import refusals
from smtpd_fork.observe.snapshot import Snapshot, snapshot_of
from smtpd_fork.version import __version__

if TYPE_CHECKING:
    from smtpd_fork.listeners.backlog import Backlog
    from smtpd_fork.observe.service import Observed
    from smtpd_fork.observe.sink_state import SinkState

__all__ = ["FLEET_METRICS", "METRICS", "SUPERVISOR_METRICS", "Metrics", "Row", "ServerMetrics"]

OTHER = "other"
"""The label for rules that an embedding program has added to the gate."""


@dataclass(frozen=True, slots=True)
class Row:
    """One metric.

    :ivar kind: ``counter``, ``gauge``, ``histogram`` or ``info``
    :ivar label: names of its labels, separated by commas; empty for none
    :ivar text: its help text
    :ivar value: returns the value, or the values by label, or None if the server does not have the
        metric; None for a metric of the process
    """

    name: str
    kind: str
    label: str
    text: str
    value: Callable[[Snapshot, Tally], object] | None = None


def _by_rule(refused: Mapping[str, int]) -> dict[str, int]:
    """Return the refusals of all rules, including zeros."""
    counts = dict.fromkeys([*CURES, OTHER], 0)
    for rule, count in refused.items():
        counts[rule if rule in counts else OTHER] += count
    return counts


def _tls_handshakes(snapshot: Snapshot, tally: Tally) -> dict[str, int]:
    refused = snapshot.stats.get("refused_tls_failure_rate", 0)
    return {"done": tally.tls_done, "failed": tally.tls_failed, "refused": refused}


def _with_server(snapshot: Snapshot) -> list[SinkState]:
    return [sink for sink in snapshot.sinks if sink.connections is not None]


def _latencies(counts: Mapping[str, AnswerCounts]) -> dict[str, Latency]:
    return {name: each.latency for name, each in counts.items()}


def _backlogs(snapshot: Snapshot) -> list[tuple[str, Backlog]]:
    return [(name, backlog) for name, backlog in snapshot.queues if backlog is not None]


_VERSIONS = {
    "version": __version__,
    "python": platform.python_version(),
    "aiosmtpd": version("aiosmtpd"),
    "uvloop": version("uvloop"),
}

METRICS = (
    Row("smtpd_fork_sessions", "gauge", "state", "Current sessions, by state.",
        lambda s, _: s.phases),
    Row("smtpd_fork_sessions_limit", "gauge", "",
        "Maximum concurrent sessions (--limit-connections).",
        lambda s, _: s.limit),
    Row("smtpd_fork_clients", "gauge", "", "Clients with a current session.",
        lambda s, _: s.clients),
    Row("smtpd_fork_admissions_total", "counter", "", "Clients admitted.",
        lambda s, _: s.stats["admitted"]),
    Row("smtpd_fork_refusals_total", "counter", "rule", "Clients refused, by rule.",
        lambda s, _: _by_rule(refusals(s.stats))),
    Row("smtpd_fork_denied_networks", "gauge", "",
        "Networks denied at run time (smtpd-fork deny) and still in force.",
        lambda s, _: s.denied),
    Row("smtpd_fork_ready", "gauge", "", "1 while new clients are admitted (readiness, /readyz).",
        lambda s, _: int(s.state == "serving")),
    Row("smtpd_fork_received_bytes_total", "counter", "",
        "Bytes received from clients, after TLS decryption.",
        lambda _, tally: tally.received),
    Row("smtpd_fork_messages_total", "counter", "outcome", "Messages, by outcome.",
        lambda _, tally: tally.outcomes()),
    Row("smtpd_fork_replies_total", "counter", "command,class",
        "Replies to commands, by command and class (2xx, 3xx, 4xx, 5xx).",
        lambda _, tally: tally.replies_by_class()),
    Row("smtpd_fork_rejections_total", "counter", "reason",
        "Commands and messages rejected in sessions, by reason.",
        lambda _, tally: tally.rejections.by_reason()),
    Row("smtpd_fork_message_bytes_total", "counter", "", "Bytes of accepted messages.",
        lambda _, tally: tally.content),
    Row("smtpd_fork_authentication_results_removed_total", "counter", "",
        "Messages from which Authentication-Results in the name of this server were removed.",
        lambda _, tally: tally.forged_results),
    Row("smtpd_fork_handler_seconds", "histogram", "hook", "Run time of handler hooks in seconds.",
        lambda _, tally: tally.hooks),
    Row("smtpd_fork_sink_seconds", "histogram", "sink",
        "Time in seconds that a sink took for a message.",
        lambda _, tally: _latencies(tally.sinks)),
    Row("smtpd_fork_sink_replies_total", "counter", "sink,class",
        "Replies of sinks to messages, by sink and class (2xx, 4xx, 5xx).",
        lambda _, tally: by_class(tally.sinks)),
    Row("smtpd_fork_sink_connections", "gauge", "sink",
        "Connections of a sink to its server.",
        lambda s, _: {each.name: each.connections for each in _with_server(s)}),
    Row("smtpd_fork_sink_waiting", "gauge", "sink", "Messages that wait for a connection.",
        lambda s, _: {each.name: each.waiting for each in _with_server(s)}),
    Row("smtpd_fork_sink_down_since_timestamp_seconds", "gauge", "sink",
        "Time since which the server of a sink does not answer, in seconds since the epoch; "
        "0 while it answers.",
        lambda s, _: {each.name: each.down_since or 0.0 for each in _with_server(s)}),
    Row("smtpd_fork_filter_seconds", "histogram", "filter",
        "Time in seconds of a request of a filter to its program.",
        lambda _, tally: _latencies(tally.filters)),
    Row("smtpd_fork_filter_replies_total", "counter", "filter,class",
        "Answers to requests of filters to their programs, by filter and class (2xx, no "
        "objection; 4xx, 5xx).",
        lambda _, tally: by_class(tally.filters)),
    Row("smtpd_fork_filter_connections", "gauge", "filter",
        "Connections of a filter to its program.",
        lambda s, _: {each.name: each.connections for each in s.filters}),
    Row("smtpd_fork_filter_down_since_timestamp_seconds", "gauge", "filter",
        "Time since which the program of a filter does not answer, in seconds since the epoch; "
        "0 while it answers.",
        lambda s, _: {each.name: each.down_since or 0.0 for each in s.filters}),
    Row("smtpd_fork_loop_lag_seconds", "histogram", "",
        "Event-loop lag in seconds, measured ten times per second.",
        lambda _, tally: {"": tally.lag}),
    Row("smtpd_fork_accept_queue", "gauge", "listener", "Clients waiting in the kernel's backlog.",
        lambda s, _: {name: backlog.waiting for name, backlog in _backlogs(s)}),
    Row("smtpd_fork_accept_queue_limit", "gauge", "listener",
        "Maximum number of clients in the kernel's backlog.",
        lambda s, _: {name: backlog.limit for name, backlog in _backlogs(s)}),
    Row("smtpd_fork_tls_handshakes_total", "counter", "outcome",
        "TLS handshakes: done, failed, refused.", _tls_handshakes),
    Row("smtpd_fork_dnsbl_zone_enabled", "gauge", "zone", "1 while the blocklist is used.",
        lambda s, _: {zone: int(on) for zone, on in s.zones.items()}),
    Row("smtpd_fork_build_info", "info", "", "Versions of smtpd-fork, Python, aiosmtpd and uvloop.",
        lambda *_: _VERSIONS),
    Row("process_cpu_seconds_total", "counter", "", "CPU time of the process in seconds."),
    Row("process_resident_memory_bytes", "gauge", "", "Resident memory size in bytes."),
    Row("process_virtual_memory_bytes", "gauge", "", "Virtual memory size in bytes."),
    Row("process_start_time_seconds", "gauge", "",
        "Start time of the process, in seconds since the epoch."),
    Row("process_open_fds", "gauge", "", "Number of open file descriptors."),
    Row("process_max_fds", "gauge", "", "Maximum number of open file descriptors."),
)  # fmt: skip
"""The metrics of a daemon; the last six have the names that exporters usually use."""

FLEET_METRICS = (
    Row("smtpd_fork_fleet_state", "gauge", "state",
        "1 for the state of the fleet as this node sees it; only with --fleet.",
        lambda s, _: s.fleet and {state: int(state == s.fleet.state) for state in STATES}),
    Row("smtpd_fork_fleet_nodes", "gauge", "", "Nodes of the fleet, including this one.",
        lambda s, _: s.fleet and s.fleet.nodes),
    Row("smtpd_fork_fleet_slots", "gauge", "",
        "Connection slots of the fleet (--fleet-connections) that this node holds.",
        lambda s, _: s.fleet and s.fleet.slots),
    Row("smtpd_fork_fleet_slots_free", "gauge", "",
        "Connection slots of the fleet that this node holds and does not use.",
        lambda s, _: s.fleet and s.fleet.free),
    Row("smtpd_fork_fleet_questions_total", "counter", "outcome",
        "Clients about which the fleet was queried, by outcome; alone: the fleet was out of reach.",
        lambda s, _: s.fleet and s.fleet.outcomes),
    Row("smtpd_fork_fleet_seconds", "histogram", "",
        "Time in seconds from a message to the fleet to its answer.",
        lambda s, tally: s.fleet and {"": tally.fleet}),
    Row("smtpd_fork_fleet_episodes_total", "counter", "",
        "Times that the fleet was out of reach.",
        lambda s, _: s.fleet and s.fleet.episodes),
)  # fmt: skip
"""Additional metrics of a node of a fleet."""

SUPERVISOR_METRICS = (
    Row("smtpd_fork_processes", "gauge", "",
        "Processes that accept clients; only with --processes."),
    Row("smtpd_fork_processes_replaced_total", "counter", "",
        "Processes that ended and were replaced; only with --processes."),
)  # fmt: skip
"""Additional metrics of the supervisor of ``--processes``."""


def _values(snapshot: Snapshot, tally: Tally) -> Iterator[tuple[Row, object]]:
    for row in (*METRICS, *FLEET_METRICS):
        value = None if row.value is None else row.value(snapshot, tally)
        if value is not None:
            yield row, value


class Metrics:
    """Converts snapshots and the tally of all sessions into the text that Prometheus reads."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._process = Process()

    def values(self, snapshot: Snapshot) -> dict[str, object]:
        """Return by name the value of each metric, or its values by label."""
        values: dict[str, object] = dict(self._process.values())
        values |= {row.name: value for row, value in _values(snapshot, self._tally)}
        return values

    @staticmethod
    def page(values: Mapping[str, object], accept: str) -> tuple[bytes, str]:
        """Return the metrics and their content type.

        :param accept: the Accept field of the request, which selects OpenMetrics or Prometheus'
            text format
        """
        families = [
            _family(row, values[row.name])
            for row in (*METRICS, *FLEET_METRICS, *SUPERVISOR_METRICS)
            if row.name in values
        ]
        encode, content_type = choose_encoder(accept)
        registry: Any = SimpleNamespace(collect=lambda: families)  # all that the encoder uses
        return encode(registry), content_type


class ServerMetrics(Collector):
    """The metrics of a :class:`smtpd_fork.Server`, for the registry of a program.

    ::

        server = Server(handler, listen=["127.0.0.1:0"])
        prometheus_client.REGISTRY.register(ServerMetrics(server))

    They are the metrics of ``--metrics`` without those of the process. Create this object before
    the server starts, so that hooks, sinks, the event-loop lag and the received bytes are measured
    as well. Two servers need two registries, as the names are the same. :meth:`collect` may be
    called in any thread.

    :param server: the server
    """

    def __init__(self, server: Observed) -> None:
        self._server = server
        server.tally.timing = True

    def collect(self) -> Iterator[Metric]:
        """Yield the current metrics (prometheus_client.registry.Collector)."""
        snapshot, tally = snapshot_of(self._server), self._server.tally
        for row, value in _values(snapshot, tally):
            yield _family(row, value)

    def describe(self) -> Iterator[Metric]:
        """Yield the metrics without values; the registry calls it before the server may run."""
        for row in (*METRICS, *FLEET_METRICS):
            if row.value is not None:
                yield Metric(
                    row.name.removesuffix("_total").removesuffix("_info"), row.text, row.kind
                )


def _family(row: Row, value: Any) -> Metric:
    """Return a metric with its value, or with its values by label."""
    if row.kind == "info":
        return InfoMetricFamily(row.name.removesuffix("_info"), row.text, value)
    labels = row.label.split(",") if row.label else []
    if row.kind == "histogram":
        histogram = HistogramMetricFamily(row.name, row.text, labels=labels)
        for label, latency in sorted(value.items()):
            histogram.add_metric([label] if labels else [], _buckets(latency), latency.total)
        return histogram
    make: Callable[..., Any] = CounterMetricFamily if row.kind == "counter" else GaugeMetricFamily
    family: CounterMetricFamily | GaugeMetricFamily = make(row.name, row.text, labels=labels)
    for label, number in value.items() if labels else [((), value)]:
        family.add_metric([label] if isinstance(label, str) else label, number)
    return family


def _buckets(latency: Latency) -> list[tuple[str, float]]:
    """Return the buckets of a histogram; each includes the smaller ones, as Prometheus expects."""
    bounds = [*map(str, BOUNDS), "+Inf"]
    return list(zip(bounds, map(float, accumulate(latency.counts)), strict=True))
