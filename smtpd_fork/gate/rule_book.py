"""RuleBook: the rules in force, and which of them apply to a client, and when."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from smtpd_fork.gate.client import Client
from smtpd_fork.gate.rules import Counts, Rule

if TYPE_CHECKING:
    from collections.abc import Iterable

    from smtpd_fork.gate.limits import Limits
    from smtpd_fork.gate.rules import Load
    from smtpd_fork.gate.verdict import Refusal
    from smtpd_fork.peer_address import Peer

__all__ = ["RuleBook"]

MAX_CLIENTS = 4096
"""Hosts that are known at once: what the lists say of them need not be looked up again."""


class Page(NamedTuple):
    """The rules that apply to one kind of client.

    :ivar on_arrival: asked when a connection has come
    :ivar on_header: asked when a PROXY header has named the client
    :ivar on_handshake: asked before a TLS handshake
    :ivar told: count the sessions that exist
    :ivar timed: count admissions in a time
    :ivar timed_handshakes: count TLS handshakes in a time
    """

    on_arrival: tuple[Rule, ...]
    on_header: tuple[Rule, ...]
    on_handshake: tuple[Rule, ...]
    told: tuple[Rule, ...]
    timed: tuple[Rule, ...]
    timed_handshakes: tuple[Rule, ...]


class RuleBook:
    """The rules of a gate, and the clients that it knows.

    :param limits: which rules are on
    :param load: the event-loop lag
    :param before: the book that this one follows, whose rules may go on
    :ivar rules: in the order in which they are asked
    :ivar handshake_rules: those about TLS handshakes
    """

    def __init__(self, limits: Limits, load: Load, before: RuleBook | None = None) -> None:
        self._exempt = limits.exempt
        self._ipv6_prefix = limits.ipv6_prefix
        old: tuple[Rule, ...] = before.rules if before else ()
        self.rules: tuple[Rule, ...] = _go_on(limits.rules(load), old)
        old = before.handshake_rules if before else ()
        self.handshake_rules: tuple[Rule, ...] = _go_on(limits.handshake_rules(), old)
        self._pages: dict[tuple[object, ...], Page] = {}
        self._clients: dict[str | None, Client] = {}

    def client(self, peer: Peer) -> Client:
        """Return what is known of the host of *peer*: most clients have connected before."""
        host = peer[0] if isinstance(peer, tuple) else peer
        return self._clients.get(host) or self._meet(host)

    def _meet(self, host: str | None) -> Client:
        client = Client(host, self._ipv6_prefix)
        client.exempt = self._exempt is not None and bool(self._exempt.find(client.number))
        client.kept_out_by = self._keeps_out(client)
        client.rules = self._page(client)
        if len(self._clients) >= MAX_CLIENTS:
            self._clients.clear()  # a client that returns is looked up again
        self._clients[host] = client
        return client

    def _page(self, client: Client) -> Page:
        """Return the rules that apply to *client*; there are a few kinds of clients."""
        kind = client.exempt, client.ipv6, client.local
        page = self._pages.get(kind)
        if page is None:
            page = self._pages[kind] = self._sort_for(client)
        return page

    def _sort_for(self, client: Client) -> Page:
        rules = [r for r in self.rules if not r.about_address and r.concerns(client)]
        handshake_rules = [rule for rule in self.handshake_rules if rule.concerns(client)]
        asked = [rule for rule in rules if not (client.exempt and rule.about_sources)]
        return Page(
            on_arrival=tuple(asked),
            on_header=tuple(rule for rule in asked if not rule.about_arrival),
            on_handshake=() if client.exempt else tuple(handshake_rules),
            told=tuple(rule for rule in rules if type(rule).enter is not Rule.enter),
            timed=tuple(rule for rule in rules if type(rule).arrived is not Rule.arrived),
            timed_handshakes=tuple(handshake_rules),
        )

    def _keeps_out(self, client: Client) -> Rule | None:
        """Return the rule that refuses every client with this address, or None."""
        asked = (r for r in self.rules if not (client.exempt and r.about_sources))
        keeping = (r for r in asked if r.about_address and r.judge(client, Counts(), 0.0))
        return next(keeping, None)


def judge(rules: Iterable[Rule], client: Client, counts: Counts, now: float) -> Refusal | None:
    """Return why *client* is refused, or None."""
    if client.kept_out_by is not None:
        return client.kept_out_by.judge(client, counts, now)
    for rule in rules:
        refusal = rule.judge(client, counts, now)
        if refusal is not None:
            return refusal
    return None


def _go_on(rules: Iterable[Rule], before: Iterable[Rule]) -> tuple[Rule, ...]:
    """Return *rules*, each of those *before* in place of the one that it goes on as."""
    return tuple(next((old for old in before if rule.goes_on_as(old)), rule) for rule in rules)
