"""Tables of the results, in Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.results import Spread
from bench.targets import FLOOR, OURS, TARGETS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from bench.contenders import Contender
    from bench.results import Results
    from bench.workloads import Metric, Workload

__all__ = ["YARDSTICK", "floor_table", "summary_table", "target_table", "workload_table"]

YARDSTICK = "smtp-sink"
"""The server that the lower limit is compared with."""


def _rows(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    for row in (head, ["---"] * len(head), *rows):
        yield f"| {' | '.join(row)} |"


def summary_table(
    results: Results, workloads: Iterable[Workload], names: Sequence[str]
) -> list[str]:
    """Return the costs of this daemon, divided by the costs of the servers *names*."""
    rows = []
    for workload in workloads:
        metric = workload.metrics[0]
        ratios = [results.ratios(workload.key, OURS, name, metric.key) for name in names]
        if any(ratios):
            label = f"{metric.label}: {workload.title}"
            rows.append([label, *(str(Spread.of(each) or "-") for each in ratios)])
    return list(_rows(["", *(f"/ {name}" for name in names)], rows))


def target_table(results: Results, keys: Iterable[str]) -> list[str]:
    """Return the targets of the workloads that were run."""
    chosen = set(keys)
    return list(
        _rows(
            ["", "target", "limit", "measured", "met"],
            (
                [t.workload, t.text, t.wanted, t.measured(results), t.verdict(results)]
                for t in TARGETS
                if t.workload in chosen
            ),
        )
    )


def floor_table(results: Results, keys: Iterable[str]) -> list[str]:
    """Return the cost of this daemon, and its targets, relative to the lower limit for Python."""
    chosen = set(keys)
    rows = []
    for target in TARGETS:
        if target.workload not in chosen or target.against != YARDSTICK:
            continue
        at_least = results.ratios(target.workload, FLOOR, target.against, target.metric)
        ours = results.ratios(target.workload, OURS, FLOOR, target.metric)
        rows.append(
            [
                target.workload,
                str(Spread.of(at_least) or "-"),
                f"{target.limit:g}",
                str(Spread.of(ours) or "-"),
            ]
        )
    head = ["", f"{FLOOR} / {YARDSTICK}", f"target / {YARDSTICK}", f"{OURS} / {FLOOR}"]
    return list(_rows(head, rows))


def workload_table(
    results: Results, workload: Workload, contenders: Sequence[Contender]
) -> list[str]:
    """Return a workload's values, one row per server."""
    names = [contender.name for contender in contenders if workload.measures(contender)]
    others = [
        name
        for name in workload.compared_with
        if name in names and results.values(workload.key, name, workload.metrics[0].key)
    ]
    head = ["server"]
    for metric in workload.metrics:
        head.append(f"{metric.label}, {metric.unit}" if metric.unit else metric.label)
        if metric.compared:
            head += [f"/ {other}" for other in others]
    rows = (_row(results, workload, name, others, len(head)) for name in names)
    return list(_rows(head, rows))


def _row(
    results: Results, workload: Workload, name: str, others: Sequence[str], width: int
) -> list[str]:
    title = f"**{name}**" if name == OURS else name
    why = results.why_not(workload.key, name)
    cells: list[str] = []
    for metric in workload.metrics:
        cells += _cells(results, workload.key, name, metric, others)
    if all(cell == "-" for cell in cells):
        return [title, why or "not measured", *[""] * (width - 2)]
    return [f"{title} ({why})" if why else title, *cells]


def _cells(
    results: Results, workload: str, name: str, metric: Metric, others: Sequence[str]
) -> Iterator[str]:
    yield str(Spread.of(results.values(workload, name, metric.key)) or "-")
    if metric.compared:
        for other in others:
            ratios = results.ratios(workload, name, other, metric.key)
            yield "1" if other == name else str(Spread.of(ratios) or "-")
