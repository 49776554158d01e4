"""refuse_first, refuse_every: refusals on demand, to test what clients do when they get 421."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smtpd_fork.gate.rules.base import Counts, Rule
from smtpd_fork.gate.verdict import Refusal

if TYPE_CHECKING:
    from smtpd_fork.gate.client import Client

__all__ = ["RefuseEveryRule"]


class RefuseEveryRule(Rule):
    """Refuses the first N clients, and then each Nth.

    :param first: how many of the first; 0 is none
    :param every: of those after them each Nth; 0 is none
    """

    name = "refuse_every"
    about_clients = False
    about_arrival = True

    def __init__(self, first: int, every: int) -> None:
        self.first = first
        self.every = every
        self._asked = 0

    def judge(self, client: Client, counts: Counts, now: float) -> Refusal | None:
        """Refuse a client whose turn it is; each question counts, unlike with other rules."""
        self._asked += 1
        key = client.key or "unix"
        text = "Refused for testing, try again later"
        if self._asked <= self.first:
            return Refusal("refuse_first", key, self._asked, self.first, text=text)
        if self.every and (self._asked - self.first) % self.every == 0:
            return Refusal(self.name, key, self._asked, self.every, text=text)
        return None

    def goes_on_as(self, other: Rule) -> bool:
        """Go on counting after a reload, so that a test runs to its end."""
        return isinstance(other, RefuseEveryRule) and (other.first, other.every) == (
            self.first,
            self.every,
        )
