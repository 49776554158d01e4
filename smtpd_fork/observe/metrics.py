"""Metrics: the figures of a server, for Prometheus.

Each metric is a row of :data:`METRICS`, and a value in :meth:`Metrics.collect`. docs/monitoring.md
has the same rows. The values of labels come from this program and its configuration, never from a
client or a handler.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.exposition import choose_encoder

from smtpd_fork.gate.statistics import CURES
from smtpd_fork.observe.process import Process
from smtpd_fork.observe.refusal_history import refusals
from smtpd_fork.smtp.tally import BOUNDS
from smtpd_fork.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from prometheus_client import Metric

    from smtpd_fork.observe.snapshot import Snapshot
    from smtpd_fork.smtp.tally import Latency, Tally

__all__ = ["METRICS", "Metrics", "Row"]

OTHER = "other"
"""The label of rules that an embedder has added to the gate."""


@dataclass(frozen=True, slots=True)
class Row:
    """One metric.

    :ivar kind: ``counter``, ``gauge``, ``histogram`` or ``info``
    :ivar label: its label; empty for none
    :ivar text: its description
    """

    name: str
    kind: str
    label: str
    text: str


METRICS = (
    Row("smtpd_fork_sessions", "gauge", "state", "Sessions now, by what they do."),
    Row("smtpd_fork_sessions_limit", "gauge", "", "Sessions at once (--limit-connections)."),
    Row("smtpd_fork_sources", "gauge", "", "Sources that have a session now."),
    Row("smtpd_fork_admissions_total", "counter", "", "Clients that were let in."),
    Row("smtpd_fork_refusals_total", "counter", "rule", "Clients that were refused, by the rule."),
    Row("smtpd_fork_ready", "gauge", "", "1 while clients are let in: /readyz."),
    Row("smtpd_fork_received_bytes_total", "counter", "", "Bytes that clients sent, after TLS."),
    Row("smtpd_fork_messages_total", "counter", "outcome", "Messages, by what became of them."),
    Row("smtpd_fork_message_bytes_total", "counter", "", "Bytes of accepted messages."),
    Row("smtpd_fork_handler_seconds", "histogram", "hook", "Time that the handlers' hooks took."),
    Row("smtpd_fork_sink_seconds", "histogram", "sink", "Time that sinks took for a message."),
    Row(
        "smtpd_fork_loop_lag_seconds", "histogram", "", "How late the loop was, ten times a second."
    ),
    Row("smtpd_fork_accept_queue", "gauge", "listener", "Clients in the kernel's backlog."),
    Row("smtpd_fork_accept_queue_limit", "gauge", "listener", "Clients that it holds at most."),
    Row(
        *("smtpd_fork_tls_handshakes_total", "counter", "outcome"),
        "TLS handshakes: done, failed, refused.",
    ),
    Row("smtpd_fork_dnsbl_zone_enabled", "gauge", "zone", "1 while clients are looked up in it."),
    Row("smtpd_fork_build_info", "info", "", "Versions of what runs."),
    Row("process_cpu_seconds_total", "counter", "", "CPU time of the process."),
    Row("process_resident_memory_bytes", "gauge", "", "Memory that it occupies."),
    Row("process_virtual_memory_bytes", "gauge", "", "Memory that it has mapped."),
    Row("process_start_time_seconds", "gauge", "", "When it began, since the epoch."),
    Row("process_open_fds", "gauge", "", "File descriptors that are open."),
    Row("process_max_fds", "gauge", "", "File descriptors that may be open."),
)
"""All metrics; the last six have the names that all exporters use."""

_ROWS = {row.name: row for row in METRICS}


class _Families:
    """Metrics in the shape of a registry, as the encoder of prometheus-client wants it."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Metric]:
        return self._families


class Metrics:
    """Turns snapshots into the text that Prometheus reads.

    :param tally: the counters of all sessions
    """

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._process = Process()
        self._texts = {row.name: row.text for row in METRICS if row.name.startswith("process_")}
        self._build = {
            "version": __version__,
            "python": platform.python_version(),
            "aiosmtpd": version("aiosmtpd"),
            "uvloop": version("uvloop"),
        }

    def page(self, snapshot: Snapshot, accept: str) -> tuple[bytes, str]:
        """Return the metrics and their content type.

        :param accept: the header of the request; OpenMetrics if it asks for that, else
            Prometheus' text format
        """
        process = self._process.collect(self._texts)
        encode, content_type = choose_encoder(accept)
        families: Any = _Families([*self.collect(snapshot), *process])
        return encode(families), content_type

    def collect(self, snapshot: Snapshot) -> list[Metric]:
        """Return the metrics that are our own."""
        tally = self._tally
        values: dict[str, object] = {
            "smtpd_fork_sessions": snapshot.phases,
            "smtpd_fork_sessions_limit": snapshot.limit,
            "smtpd_fork_sources": snapshot.sources,
            "smtpd_fork_admissions_total": snapshot.stats["admitted"],
            "smtpd_fork_refusals_total": _by_rule(refusals(snapshot.stats)),
            "smtpd_fork_ready": int(snapshot.state == "serving"),
            "smtpd_fork_received_bytes_total": tally.received,
            "smtpd_fork_messages_total": tally.outcomes(),
            "smtpd_fork_message_bytes_total": tally.content,
            "smtpd_fork_handler_seconds": tally.hooks,
            "smtpd_fork_sink_seconds": tally.sinks,
            "smtpd_fork_loop_lag_seconds": {"": tally.lag},
            "smtpd_fork_accept_queue": {
                name: queue.waiting for name, queue in snapshot.queues if queue is not None
            },
            "smtpd_fork_accept_queue_limit": {
                name: queue.limit for name, queue in snapshot.queues if queue is not None
            },
            "smtpd_fork_tls_handshakes_total": {
                "done": tally.tls_done,
                "failed": tally.tls_failed,
                "refused": snapshot.stats.get("refused_tls_failure_rate", 0),
            },
            "smtpd_fork_dnsbl_zone_enabled": {zone: int(on) for zone, on in snapshot.zones.items()},
            "smtpd_fork_build_info": self._build,
        }
        return [_family(_ROWS[name], value) for name, value in values.items()]


def _by_rule(refused: Mapping[str, int]) -> dict[str, int]:
    """Return the refusals of all rules, zeros included."""
    counts = dict.fromkeys([*CURES, OTHER], 0)
    for rule, count in refused.items():
        counts[rule if rule in counts else OTHER] += count
    return counts


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
