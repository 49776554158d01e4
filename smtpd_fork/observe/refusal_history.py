"""History: the refusals of each rule in each of the last sixty minutes."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

__all__ = ["MINUTES", "History"]

MINUTES = 60
"""Length of the history, including the current minute."""

_REFUSED = "refused_"


class History:
    """The refusals of each minute, as differences of the gate's counts, without cost per refusal.

    :param stats: the first counts, from ``Gate.stats()``
    """

    def __init__(self, stats: Mapping[str, int]) -> None:
        self._base = refusals(stats)
        self._minutes: deque[dict[str, int]] = deque(maxlen=MINUTES - 1)

    def end_minute(self, stats: Mapping[str, int]) -> None:
        """End a minute; *stats* are the current counts."""
        now = refusals(stats)
        self._minutes.append(_difference(now, self._base))
        self._base = now

    def minutes(self, stats: Mapping[str, int]) -> list[dict[str, int]]:
        """Return the refusals by rule for each of sixty minutes, the oldest first."""
        known = [*self._minutes, _difference(refusals(stats), self._base)]
        return [{} for _ in range(MINUTES - len(known))] + known


def refusals(stats: Mapping[str, int]) -> dict[str, int]:
    """Return the refusals by rule, from the gate's counts."""
    return {n.removeprefix(_REFUSED): count for n, count in stats.items() if n.startswith(_REFUSED)}


def _difference(now: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
    return {rule: more for rule, count in now.items() if (more := count - before.get(rule, 0))}
