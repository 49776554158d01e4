"""Tables of what was measured, in Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.results import Spread
from bench.targets import FLOOR, OURS, TARGETS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from bench.contenders import Contender
    from bench.results import Results
    from bench.workloads import Metric, Workload

__all__ = ["COMPARED_WITH", "floor_table", "target_table", "workload_table"]

COMPARED_WITH = ("smtp-sink", "aiosmtpd", "postfix")
"""Servers that the others' figures are divided by."""


def _rows(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    for row in (head, ["---"] * len(head), *rows):
        yield f"| {' | '.join(row)} |"


def target_table(results: Results, keys: Iterable[str]) -> list[str]:
    """Return the targets of the workloads that were run."""
    chosen = set(keys)
    return list(
        _rows(
            ["", "target", "wanted", "measured", "met"],
            (
                [t.workload, t.text, t.wanted, t.measured(results), t.verdict(results)]
                for t in TARGETS
                if t.workload in chosen
            ),
        )
    )


def floor_table(results: Results, keys: Iterable[str]) -> list[str]:
    """Return how near this daemon, and the targets, are to the least that Python can cost."""
    chosen = set(keys)
    rows = []
    for target in TARGETS:
        if target.workload not in chosen or target.against != COMPARED_WITH[0]:
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
    against = COMPARED_WITH[0]
    head = ["", f"{FLOOR} / {against}", f"target / {against}", f"{OURS} / {FLOOR}"]
    return list(_rows(head, rows))


def workload_table(
    results: Results, workload: Workload, contenders: Sequence[Contender]
) -> list[str]:
    """Return a workload's figures: a row a server."""
    names = [contender.name for contender in contenders if contender.takes_part(workload.key)]
    others = [
        name
        for name in COMPARED_WITH
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
