"""RuleBook: the rules in force, and which of them apply to a client, and when."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from smtpd_fork.gate.client import Client
from smtpd_fork.gate.rules import Counts, Rule

if TYPE_CHECKING:
    from collections.abc import Iterable

    from smtpd_fork.gate.denials import Denials
    from smtpd_fork.gate.fleet_share import FleetShare
    from smtpd_fork.gate.limits import Limits
    from smtpd_fork.gate.rules import Load
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
    :param denials: networks that were denied at run time
    :param share: the part of the gate in a fleet; None: it is in none
    :param before: the book that this one follows, whose rules may go on
    :ivar rules: in the order in which they are asked
    :ivar handshake_rules: those about TLS handshakes
    """

    def __init__(
        self,
        limits: Limits,
        load: Load,
        denials: Denials,
        share: FleetShare | None = None,
        before: RuleBook | None = None,
    ) -> None:
        self._limits = limits
        self._denials = denials
        self._denials_version = denials.version
        old: tuple[Rule, ...] = before.rules if before else ()
        self.rules: tuple[Rule, ...] = _go_on(limits.rules(load, denials, share), old)
        old = before.handshake_rules if before else ()
        self.handshake_rules: tuple[Rule, ...] = _go_on(limits.handshake_rules(), old)
        self._pages: dict[tuple[object, ...], Page] = {}
        self._clients: dict[str | None, Client] = {}
        self._proxies: dict[str | None, Client] = {}

    def client(self, peer: Peer, *, proxy: bool = False) -> Client:
        """Return what is known of the host of *peer*: most clients have connected before.

        :param proxy: whether it is to name its clients by XCLIENT
        """
        host = peer[0] if isinstance(peer, tuple) else peer
        if self._denials_version != self._denials.version:
            self._denials_version = self._denials.version
            self._clients.clear()
            self._proxies.clear()
        known = self._proxies if proxy else self._clients
        return known.get(host) or self._meet(host, known)

    def _meet(self, host: str | None, known: dict[str | None, Client]) -> Client:
        limits = self._limits
        client = Client(host, limits.ipv6_prefix)
        client.exempt = limits.exempt is not None and bool(limits.exempt.find(client.number))
        client.limit = limits.limit_connections if client.exempt else limits.open_to_all
        client.proxy = known is self._proxies
        client.exempt = client.exempt or client.proxy
        client.rules = self._page(client)
        keeps_out = self._keeps_out(client)
        if keeps_out is not None:
            client.rules = client.rules._replace(on_arrival=(keeps_out,), on_header=(keeps_out,))
        if len(known) >= MAX_CLIENTS:
            known.clear()  # a client that returns is looked up again
        known[host] = client
        return client

    def _page(self, client: Client) -> Page:
        """Return the rules that apply to *client*; there are a few kinds of clients."""
        kind = client.exempt, client.ipv6, client.local, client.key is None
        page = self._pages.get(kind)
        if page is None:
            page = self._pages[kind] = self._sort_for(client)
        return page

    def _sort_for(self, client: Client) -> Page:
        rules = [r for r in self.rules if not r.about_address and r.concerns(client)]
        handshake_rules = [rule for rule in self.handshake_rules if rule.concerns(client)]
        asked = [rule for rule in rules if not (client.exempt and rule.about_clients)]
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
        asked = (r for r in self.rules if not (client.exempt and r.about_clients))
        keeping = (r for r in asked if r.about_address and r.judge(client, Counts(), 0.0))
        return next(keeping, None)


def _go_on(rules: Iterable[Rule], before: Iterable[Rule]) -> tuple[Rule, ...]:
    """Return *rules*, each of those *before* in place of the one that it goes on as."""
    return tuple(next((old for old in before if rule.goes_on_as(old)), rule) for rule in rules)
