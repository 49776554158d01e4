"""Measured values by workload, server and round, and values that are calculated from them."""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["Results", "Spread", "figure"]


class Spread(NamedTuple):
    """The median and the range of several rounds."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Self | None:
        """Return the median and the range of *values*; None if there are no values."""
        some = sorted(values)
        return cls(statistics.median(some), some[0], some[-1]) if some else None

    def __str__(self) -> str:
        if self.least == self.most:
            return figure(self.median)
        return f"{figure(self.median)} ({figure(self.least)}..{figure(self.most)})"


def figure(value: float) -> str:
    """Return a value with about three significant digits."""
    for limit, digits in ((100.0, 0), (10.0, 1)):
        if abs(value) >= limit:
            return f"{value:,.{digits}f}"
    return f"{value:.2f}"


@dataclass
class Results:
    """Measured values by workload, server and round.

    :ivar rounds: number of rounds
    :ivar reasons: why a server was not measured in a workload
    :ivar failures: errors of rounds without values, one line each
    """

    rounds: int
    reasons: dict[tuple[str, str], str] = field(default_factory=dict)
    failures: defaultdict[tuple[str, str], list[str]] = field(
        default_factory=lambda: defaultdict(list)
    )
    _figures: dict[tuple[str, str, int], dict[str, float]] = field(default_factory=dict)

    def add(self, workload: str, server: str, number: int, figures: dict[str, float]) -> None:
        """Store the values of one round."""
        self._figures[workload, server, number] = figures

    def values(self, workload: str, server: str, metric: str) -> list[float]:
        """Return a server's values, from the rounds that have one."""
        return [
            figures[metric]
            for number in range(self.rounds)
            if (figures := self._figures.get((workload, server, number))) is not None
        ]

    def worst(self, workload: str, metric: str) -> list[float]:
        """Return the largest value of any server, by round."""
        rounds = (
            [
                figures[metric]
                for (key, _, which), figures in self._figures.items()
                if key == workload and which == number
            ]
            for number in range(self.rounds)
        )
        return [max(figures) for figures in rounds if figures]

    def ratios(self, workload: str, server: str, other: str, metric: str) -> list[float]:
        """Return a server's values divided by those of another server in the same round."""
        pairs = self._pairs(workload, server, other)
        return [mine[metric] / theirs[metric] for mine, theirs in pairs if theirs[metric] > 0]

    def differences(self, workload: str, server: str, other: str, metric: str) -> list[float]:
        """Return a server's values minus those of another server in the same round."""
        pairs = self._pairs(workload, server, other)
        return [mine[metric] - theirs[metric] for mine, theirs in pairs]

    def _pairs(
        self, workload: str, server: str, other: str
    ) -> Iterator[tuple[dict[str, float], dict[str, float]]]:
        for number in range(self.rounds):
            mine = self._figures.get((workload, server, number))
            theirs = self._figures.get((workload, other, number))
            if mine is not None and theirs is not None:
                yield mine, theirs

    def why_not(self, workload: str, server: str) -> str:
        """Return why there are no values, or fewer than rounds; or an empty string."""
        key = (workload, server)
        if key in self.reasons:
            return f"not measured: {self.reasons[key]}"
        failures = self.failures.get(key, [])
        if failures:
            return f"failed in {len(failures)} of {self.rounds} rounds: {failures[-1]}"
        return ""
