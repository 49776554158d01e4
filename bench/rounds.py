"""The rounds: each one runs every workload, and every server of a workload in turn."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from bench.process import BenchError
from bench.results import Results, figure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.certificates import Certificates
    from bench.contenders import Contender
    from bench.workloads import Workload

__all__ = ["measure"]


def measure(
    contenders: Sequence[Contender],
    workloads: Sequence[Workload],
    rounds: int,
    certificates: Certificates,
    tell: Callable[[str], None],
) -> Results:
    """Measure everything *rounds* times.

    The servers of a workload are measured one after another, so that compared values are measured
    within seconds of each other; each round begins with a different server.
    """
    results = Results(rounds)
    results.reasons.update(_reasons(contenders, workloads, certificates))
    for number in range(rounds):
        for workload in workloads:
            first = number % len(contenders)
            for contender in (*contenders[first:], *contenders[:first]):
                if not workload.measures(contender):
                    continue
                if (workload.key, contender.name) in results.reasons:
                    continue
                began = time.monotonic()
                said = _once(workload, contender, number, certificates, results)
                seconds = time.monotonic() - began
                tell(
                    f"round {number + 1}/{rounds} {workload.key} {contender.name}: {said} "
                    f"[{seconds:.1f} s]"
                )
    return results


def _once(
    workload: Workload,
    contender: Contender,
    number: int,
    certificates: Certificates,
    results: Results,
) -> str:
    """Measure a server once; return a line about it."""
    try:
        figures = workload.measure(contender, certificates)
    except BenchError as error:
        results.failures[workload.key, contender.name].append(str(error))
        return f"FAILED: {error}"
    results.add(workload.key, contender.name, number, figures)
    return ", ".join(
        f"{metric.label} {figure(figures[metric.key])} {metric.unit}".rstrip()
        for metric in workload.metrics
    )


def _reasons(
    contenders: Sequence[Contender], workloads: Sequence[Workload], certificates: Certificates
) -> dict[tuple[str, str], str]:
    """Return the measurements that are impossible, each with the reason."""
    reasons = {}
    for contender in contenders:
        absent = contender.missing()
        for workload in workloads:
            why = absent or contender.cannot.get(workload.key, "") or workload.missing()
            if workload.key == "W7":
                why = why or certificates.missing
            if why:
                reasons[workload.key, contender.name] = why
    return reasons
