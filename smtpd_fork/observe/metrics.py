"""Metrics: the figures of a server, for Prometheus.

Each metric is a row of :data:`METRICS`; docs/monitoring.md has the same rows. The values of labels
come from this program and its configuration, never from a client or a handler.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import version
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.exposition import choose_encoder

from smtpd_fork.dialogue.tally import BOUNDS
from smtpd_fork.gate.statistics import CURES
from smtpd_fork.observe.process import Process
from smtpd_fork.observe.refusal_history import refusals
from smtpd_fork.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from prometheus_client import Metric

    from smtpd_fork.dialogue.tally import Latency, Tally
    from smtpd_fork.listeners.backlog import Backlog
    from smtpd_fork.observe.snapshot import Snapshot

__all__ = ["METRICS", "Metrics", "Row"]

OTHER = "other"
"""The label of rules that an embedder has added to the gate."""


@dataclass(frozen=True, slots=True)
class Row:
    """One metric.

    :ivar kind: ``counter``, ``gauge``, ``histogram`` or ``info``
    :ivar label: its label; empty for none
    :ivar text: its description
    :ivar value: returns the value, or the values by label; None for a figure of the process
    """

    name: str
    kind: str
    label: str
    text: str
    value: Callable[[Snapshot, Tally], object] | None = None


def _by_rule(refused: Mapping[str, int]) -> dict[str, int]:
    """Return the refusals of all rules, zeros included."""
    counts = dict.fromkeys([*CURES, OTHER], 0)
    for rule, count in refused.items():
        counts[rule if rule in counts else OTHER] += count
    return counts


def _tls_handshakes(snapshot: Snapshot, tally: Tally) -> dict[str, int]:
    refused = snapshot.stats.get("refused_tls_failure_rate", 0)
    return {"done": tally.tls_done, "failed": tally.tls_failed, "refused": refused}


def _backlogs(snapshot: Snapshot) -> list[tuple[str, Backlog]]:
    return [(name, backlog) for name, backlog in snapshot.queues if backlog is not None]


_VERSIONS = {
    "version": __version__,
    "python": platform.python_version(),
    "aiosmtpd": version("aiosmtpd"),
    "uvloop": version("uvloop"),
}

METRICS = (
    Row("smtpd_fork_sessions", "gauge", "state", "Sessions now, by what they do.",
        lambda s, _: s.phases),
    Row("smtpd_fork_sessions_limit", "gauge", "", "Sessions at once (--limit-connections).",
        lambda s, _: s.limit),
    Row("smtpd_fork_sources", "gauge", "", "Sources that have a session now.",
        lambda s, _: s.sources),
    Row("smtpd_fork_admissions_total", "counter", "", "Clients that were let in.",
        lambda s, _: s.stats["admitted"]),
    Row("smtpd_fork_refusals_total", "counter", "rule", "Clients that were refused, by the rule.",
        lambda s, _: _by_rule(refusals(s.stats))),
    Row("smtpd_fork_ready", "gauge", "", "1 while clients are let in: /readyz.",
        lambda s, _: int(s.state == "serving")),
    Row("smtpd_fork_received_bytes_total", "counter", "", "Bytes that clients sent, after TLS.",
        lambda _, tally: tally.received),
    Row("smtpd_fork_messages_total", "counter", "outcome", "Messages, by what became of them.",
        lambda _, tally: tally.outcomes()),
    Row("smtpd_fork_message_bytes_total", "counter", "", "Bytes of accepted messages.",
        lambda _, tally: tally.content),
    Row("smtpd_fork_handler_seconds", "histogram", "hook", "Time that the handlers' hooks took.",
        lambda _, tally: tally.hooks),
    Row("smtpd_fork_sink_seconds", "histogram", "sink", "Time that sinks took for a message.",
        lambda _, tally: tally.sinks),
    Row("smtpd_fork_loop_lag_seconds", "histogram", "",
        "How late the loop was, ten times a second.", lambda _, tally: {"": tally.lag}),
    Row("smtpd_fork_accept_queue", "gauge", "listener", "Clients in the kernel's backlog.",
        lambda s, _: {name: backlog.waiting for name, backlog in _backlogs(s)}),
    Row("smtpd_fork_accept_queue_limit", "gauge", "listener", "Clients that it holds at most.",
        lambda s, _: {name: backlog.limit for name, backlog in _backlogs(s)}),
    Row("smtpd_fork_tls_handshakes_total", "counter", "outcome",
        "TLS handshakes: done, failed, refused.", _tls_handshakes),
    Row("smtpd_fork_dnsbl_zone_enabled", "gauge", "zone", "1 while clients are looked up in it.",
        lambda s, _: {zone: int(on) for zone, on in s.zones.items()}),
    Row("smtpd_fork_build_info", "info", "", "Versions of what runs.", lambda *_: _VERSIONS),
    Row("process_cpu_seconds_total", "counter", "", "CPU time of the process."),
    Row("process_resident_memory_bytes", "gauge", "", "Memory that it occupies."),
    Row("process_virtual_memory_bytes", "gauge", "", "Memory that it has mapped."),
    Row("process_start_time_seconds", "gauge", "", "When it began, since the epoch."),
    Row("process_open_fds", "gauge", "", "File descriptors that are open."),
    Row("process_max_fds", "gauge", "", "File descriptors that may be open."),
)  # fmt: skip
"""All metrics; the last six have the names that all exporters use."""


class Metrics:
    """Turns snapshots into the text that Prometheus reads.

    :param tally: the counters of all sessions
    """

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._process = Process()

    def page(self, snapshot: Snapshot, accept: str) -> tuple[bytes, str]:
        """Return the metrics and their content type.

        :param accept: the header of the request; OpenMetrics if it asks for that, else
            Prometheus' text format
        """
        values: dict[str, object] = dict(self._process.figures())
        values |= {r.name: r.value(snapshot, self._tally) for r in METRICS if r.value is not None}
        families = [_family(row, values[row.name]) for row in METRICS if row.name in values]
        encode, content_type = choose_encoder(accept)
        registry: Any = SimpleNamespace(collect=lambda: families)  # the encoder asks no more of it
        return encode(registry), content_type


def _family(row: Row, value: Any) -> Metric:
    """Return a metric with its value, or with its values by label."""
    if row.kind == "info":
        return InfoMetricFamily(row.name.removesuffix("_info"), row.text, value)
    labels = [row.label] if row.label else []
    if row.kind == "histogram":
        histogram = HistogramMetricFamily(row.name, row.text, labels=labels)
        for label, latency in sorted(value.items()):
            histogram.add_metric([label] if labels else [], _buckets(latency), latency.total)
        return histogram
    make: Callable[..., Any] = CounterMetricFamily if row.kind == "counter" else GaugeMetricFamily
    family: Any = make(row.name, row.text, labels=labels)
    for label, figure in value.items() if labels else [("", value)]:
        family.add_metric([label] if labels else [], figure)
    metric: Metric = family
    return metric


def _buckets(latency: Latency) -> list[tuple[str, float]]:
    """Return the buckets of a histogram; each includes the smaller ones, as Prometheus wants it."""
    bounds = [*map(str, BOUNDS), "+Inf"]
    total = 0
    buckets: list[tuple[str, float]] = []
    for bound, count in zip(bounds, latency.counts, strict=True):
        total += count
        buckets.append((bound, float(total)))
    return buckets
