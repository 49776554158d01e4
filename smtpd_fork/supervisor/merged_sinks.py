"""The sums of the counts of several processes, and their sinks merged into one list."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from smtpd_fork.observe.sink_state import SinkState

__all__ = ["merged_sinks", "sum_counts"]


def sum_counts(counts: Iterable[Mapping[str, int]]) -> Counter[str]:
    """Return the sums, by name."""
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return total


def merged_sinks(parts: Iterable[Sequence[SinkState]]) -> list[SinkState]:
    """Return the sinks or filters of all processes; those of the same name are merged."""
    by_name: dict[str, list[SinkState]] = {}
    for part in parts:
        for sink in part:
            by_name.setdefault(sink.name, []).append(sink)
    return [_merged_sink(sinks) for sinks in by_name.values()]


def _merged_sink(sinks: Sequence[SinkState]) -> SinkState:
    down = max(sinks, key=lambda sink: sink.down_since or 0.0)
    counts = [sum(sink.replies.values()) for sink in sinks]
    seconds = sum(sink.average * count for sink, count in zip(sinks, counts, strict=True))
    connections = [sink.connections for sink in sinks if sink.connections is not None]
    return msgspec.structs.replace(
        down,
        replies=dict(sum_counts(sink.replies for sink in sinks)),
        average=round(seconds / sum(counts), 4) if sum(counts) else 0.0,
        connections=sum(connections) if connections else None,
        busy=sum(sink.busy for sink in sinks),
        waiting=sum(sink.waiting for sink in sinks),
    )
