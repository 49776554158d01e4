"""refuse_first, refuse_every: refusals to order, so that a client's answer to 421 can be tested."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smtpd_fork.gate.rules.base import Counts, Rule
from smtpd_fork.gate.verdict import Refusal

if TYPE_CHECKING:
    from smtpd_fork.gate.client import Client

__all__ = ["RehearsalRule"]


class RehearsalRule(Rule):
    """Refuses the first so many, and then each so-manyth client.

    :param first: so many of the first; 0 is none
    :param every: each so-manyth of those after them; 0 is none
    """

    name = "refuse_every"
    about_sources = False
    about_arrival = True

    def __init__(self, first: int, every: int) -> None:
        self.first = first
        self.every = every
        self._asked = 0

    def judge(self, client: Client, counts: Counts, now: float) -> Refusal | None:
        """Refuse the ones whose turn it is; counts each time it is asked, unlike other rules."""
        self._asked += 1
        key = client.source or "unix"
        text = "This is a rehearsal, try again later"
        if self._asked <= self.first:
            return Refusal("refuse_first", key, self._asked, self.first, text=text)
        if self.every and (self._asked - self.first) % self.every == 0:
            return Refusal(self.name, key, self._asked, self.every, text=text)
        return None

    def goes_on_as(self, other: Rule) -> bool:
        """Count on after a reload, so that what is rehearsed is rehearsed to its end."""
        return isinstance(other, RehearsalRule) and (other.first, other.every) == (
            self.first,
            self.every,
        )
