"""The plot of a run: bars of the comparable metrics of each server."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from bench.results import Spread, figure

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bench.contenders import Contender
    from bench.results import Results
    from bench.workloads import Metric, Workload

__all__ = ["draw"]

COLUMNS = 3
COLOURS = ("#0b6e4f", "#6c757d", "#c8553d", "#e0a458", "#5b7db1")


def draw(
    path: Path,
    results: Results,
    workloads: Sequence[Workload],
    contenders: Sequence[Contender],
    note: str,
) -> str:
    """Draw the first metric of each workload into *path*.

    :param note: a text below the bars
    :returns: why there is no plot, or an empty string
    """
    try:
        # Imported dynamically, so that the type checker does not need it.
        matplotlib: Any = importlib.import_module("matplotlib")
        matplotlib.use("Agg")
        pyplot: Any = importlib.import_module("matplotlib.pyplot")
    except ImportError:
        return "matplotlib is not installed"
    rows = -(-len(workloads) // COLUMNS)
    canvas, grid = pyplot.subplots(
        rows, COLUMNS, figsize=(4.6 * COLUMNS, 2.7 * rows), squeeze=False, layout="constrained"
    )
    for axes, workload in zip(grid.flat, workloads, strict=False):
        taking_part = [each for each in contenders if workload.measures(each)]
        _bars(axes, results, workload, workload.metrics[0], taking_part)
    for axes in list(grid.flat)[len(workloads) :]:
        axes.axis("off")
    canvas.supxlabel(note, fontsize=8)
    canvas.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(canvas)
    return ""


def _bars(
    axes: Any,
    results: Results,
    workload: Workload,
    metric: Metric,
    contenders: Sequence[Contender],
) -> None:
    spreads = [
        Spread.of(results.values(workload.key, contender.name, metric.key))
        for contender in contenders
    ]
    for index, spread in enumerate(spreads):
        if spread is None:
            axes.text(0, index, " not measured", va="center", fontsize=8, color="grey")
            continue
        colour = COLOURS[index % len(COLOURS)]
        error = [[spread.median - spread.least], [spread.most - spread.median]]
        axes.barh(index, spread.median, color=colour, xerr=error, ecolor="#333333", capsize=2)
        axes.text(
            spread.most,
            index,
            f"  {figure(spread.median)}",
            va="center",
            fontsize=8,
        )
    axes.set_yticks(range(len(contenders)), [contender.name for contender in contenders])
    axes.margins(x=0.2)
    axes.set_xlim(left=0)
    axes.set_ylim(len(contenders) - 0.5, -0.5)
    unit = f" ({metric.unit})" if metric.unit else ""
    axes.set_title(f"{workload.key}: {workload.title}", fontsize=9)
    better = "more" if metric.more else "less"
    axes.set_xlabel(f"{metric.label}{unit}; {better} is better", fontsize=8)
    axes.tick_params(labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
