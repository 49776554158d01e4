"""max_from_ip: sessions at once from one source."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smtpd_fork.gate.rules.base import Counts, Rule
from smtpd_fork.gate.verdict import Refusal

if TYPE_CHECKING:
    from smtpd_fork.gate.client import Client

__all__ = ["SourceRule"]


class SourceRule(Rule):
    """So many sessions from one address of IPv4, or one network of IPv6.

    :param limit: sessions, at least 1
    """

    name = "max_from_ip"

    def __init__(self, limit: int) -> None:
        self._limit = limit

    def judge(self, client: Client, counts: Counts, now: float) -> Refusal | None:
        """Refuse a source that has as many as it may."""
        if client.source is None:
            return None
        mine = counts.by_source.get(client.source, 0) + 1
        if mine <= self._limit:
            return None
        return Refusal(self.name, client.source, mine, self._limit)
