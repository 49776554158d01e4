"""fair_share: when room is short, nobody holds more than a fair part of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smtpd_fork.gate.rules.base import Counts, Rule
from smtpd_fork.gate.verdict import Refusal

if TYPE_CHECKING:
    from smtpd_fork.gate.client import Client

__all__ = ["FairShareRule"]


class FairShareRule(Rule):
    """Over three quarters full, no source holds more than all places / (sources + 1).

    The one more is for whoever comes next: there is always a part left for a newcomer.

    :param total: places in all
    """

    name = "fair_share"

    def __init__(self, total: int) -> None:
        self._total = total

    def judge(self, client: Client, counts: Counts, now: float) -> Refusal | None:
        """Refuse a source that has its part, while room is short."""
        if client.source is None or 4 * counts.total < 3 * self._total:
            return None
        mine = counts.by_source.get(client.source, 0) + 1
        share = max(1, self._total // (len(counts.by_source) + 1))
        if mine <= share:
            return None
        return Refusal(self.name, client.source, mine, share)
