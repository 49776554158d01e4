"""RuleBook: the rules in force, sorted by when the gate asks them and what it tells them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from smtpd_fork.gate.rules import Counts, Rule

if TYPE_CHECKING:
    from collections.abc import Iterable

    from smtpd_fork.gate.client import Client
    from smtpd_fork.gate.verdict import Refusal

__all__ = ["RuleBook"]


class Asked(NamedTuple):
    """The rules that are asked at one moment.

    :ivar of_all: about clients as they are
    :ivar of_exempt: about those that are exempt
    """

    of_all: tuple[Rule, ...]
    of_exempt: tuple[Rule, ...]

    @classmethod
    def of(cls, rules: Iterable[Rule]) -> Asked:
        """Sort *rules*."""
        of_all = tuple(rules)
        return cls(of_all, tuple(rule for rule in of_all if not rule.about_sources))


class RuleBook:
    """The rules of a gate.

    :param rules: in the order in which they are asked
    :param before: the book that this one follows, whose rules may go on
    :ivar on_arrival: asked when a connection has come
    :ivar on_header: asked when a PROXY header has told who it is from
    :ivar told: want to know who is in
    :ivar timed: want to know when somebody came in
    """

    def __init__(self, rules: Iterable[Rule], before: RuleBook | None = None) -> None:
        old: tuple[Rule, ...] = before.rules if before is not None else ()
        self.rules: tuple[Rule, ...] = tuple(
            next((other for other in old if rule.goes_on_as(other)), rule) for rule in rules
        )
        self._about_addresses = tuple(rule for rule in self.rules if rule.about_address)
        others = [rule for rule in self.rules if not rule.about_address]
        self.on_arrival = Asked.of(others)
        self.on_header = Asked.of(rule for rule in others if not rule.about_arrival)
        self.told = tuple(rule for rule in others if type(rule).enter is not Rule.enter)
        self.timed = tuple(rule for rule in others if type(rule).arrived is not Rule.arrived)

    def keeps_out(self, client: Client) -> Rule | None:
        """Return the rule that lets nobody in who has this client's address, or None."""
        for rule in self._about_addresses:
            if client.exempt and rule.about_sources:
                continue
            if rule.judge(client, Counts(), 0.0) is not None:
                return rule
        return None

    @staticmethod
    def judge(asked: Asked, client: Client, counts: Counts, now: float) -> Refusal | None:
        """Return why *client* may not come in, or None."""
        if client.kept_out_by is not None:
            return client.kept_out_by.judge(client, counts, now)
        for rule in asked.of_exempt if client.exempt else asked.of_all:
            refusal = rule.judge(client, counts, now)
            if refusal is not None:
                return refusal
        return None
