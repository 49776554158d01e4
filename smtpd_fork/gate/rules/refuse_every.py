"""refuse_first, refuse_every: refusals to test how clients behave after a 421."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smtpd_fork.gate.rules.base import Counts, Rule
from smtpd_fork.gate.verdict import Refusal

if TYPE_CHECKING:
    from smtpd_fork.gate.client import Client

__all__ = ["RefuseEveryRule"]


class RefuseEveryRule(Rule):
    """Refuses the first N clients, and then each Nth client.

    :param first: how many of the first clients to refuse
    :param every: after those, refuse each Nth client; 0: none
    """

    name = "refuse_every"
    skips_exempt = False
    arrival_only = True

    def __init__(self, first: int, every: int) -> None:
        self.first = first
        self.every = every
        self._asked = 0

    def judge(self, client: Client, counts: Counts, now: float) -> Refusal | None:
        """Refuse a client by its number; unlike other rules, it counts each call."""
        self._asked += 1
        key = client.key or "unix"
        text = "Refused for testing, try again later"
        if self._asked <= self.first:
            return Refusal("refuse_first", key, self._asked, self.first, text=text)
        if self.every and (self._asked - self.first) % self.every == 0:
            return Refusal(self.name, key, self._asked, self.every, text=text)
        return None

    def is_same_as(self, other: Rule) -> bool:
        """Return whether the numbers are the same; then a reload keeps the count."""
        return isinstance(other, RefuseEveryRule) and (other.first, other.every) == (
            self.first,
            self.every,
        )
