"""RuleBook: the rules in force, sorted by whom they are about and when they are asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from smtpd_fork.gate.rules import Counts, Rule

if TYPE_CHECKING:
    from collections.abc import Iterable

    from smtpd_fork.gate.client import Client
    from smtpd_fork.gate.verdict import Refusal

__all__ = ["RuleBook"]


class Page(NamedTuple):
    """The rules that have to do with one kind of client.

    :ivar on_arrival: asked when a connection has come
    :ivar on_header: asked when a PROXY header has told who it is from
    :ivar told: want to know who is in
    :ivar timed: want to know when somebody came in
    """

    on_arrival: tuple[Rule, ...]
    on_header: tuple[Rule, ...]
    told: tuple[Rule, ...]
    timed: tuple[Rule, ...]


class RuleBook:
    """The rules of a gate.

    :param rules: in the order in which they are asked
    :param before: the book that this one follows, whose rules may go on
    """

    def __init__(self, rules: Iterable[Rule], before: RuleBook | None = None) -> None:
        old: tuple[Rule, ...] = before.rules if before is not None else ()
        self.rules: tuple[Rule, ...] = tuple(
            next((other for other in old if rule.goes_on_as(other)), rule) for rule in rules
        )
        self._about_addresses = tuple(rule for rule in self.rules if rule.about_address)
        self._others = tuple(rule for rule in self.rules if not rule.about_address)
        self._pages: dict[tuple[object, ...], Page] = {}

    def page(self, client: Client) -> Page:
        """Return the rules that have to do with *client*; there are a few kinds of clients."""
        kind = client.exempt, client.ipv6, client.local
        page = self._pages.get(kind)
        if page is None:
            page = self._pages[kind] = self._sort_for(client)
        return page

    def _sort_for(self, client: Client) -> Page:
        rules = [rule for rule in self._others if rule.concerns(client)]
        asked = [rule for rule in rules if not (client.exempt and rule.about_sources)]
        return Page(
            tuple(asked),
            tuple(rule for rule in asked if not rule.about_arrival),
            tuple(rule for rule in rules if type(rule).enter is not Rule.enter),
            tuple(rule for rule in rules if type(rule).arrived is not Rule.arrived),
        )

    def keeps_out(self, client: Client) -> Rule | None:
        """Return the rule that lets nobody in who has this client's address, or None."""
        for rule in self._about_addresses:
            if client.exempt and rule.about_sources:
                continue
            if rule.judge(client, Counts(), 0.0) is not None:
                return rule
        return None

    @staticmethod
    def judge(
        rules: tuple[Rule, ...], client: Client, counts: Counts, now: float
    ) -> Refusal | None:
        """Return why *client* may not come in, or None."""
        if client.kept_out_by is not None:
            return client.kept_out_by.judge(client, counts, now)
        for rule in rules:
            refusal = rule.judge(client, counts, now)
            if refusal is not None:
                return refusal
        return None
