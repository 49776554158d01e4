"""RuleBook: the rules in force, and which of them apply to which client."""

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
"""Number of hosts whose entries in the lists are cached."""


class RuleSet(NamedTuple):
    """The rules that apply to one kind of client.

    :ivar on_arrival: evaluated when a connection arrives
    :ivar on_header: evaluated when a PROXY header or XCLIENT has named the client
    :ivar on_handshake: evaluated before a TLS handshake
    :ivar counting: count open sessions
    :ivar timed: count new sessions per period
    :ivar timed_handshakes: count TLS handshakes per period
    """

    on_arrival: tuple[Rule, ...]
    on_header: tuple[Rule, ...]
    on_handshake: tuple[Rule, ...]
    counting: tuple[Rule, ...]
    timed: tuple[Rule, ...]
    timed_handshakes: tuple[Rule, ...]


class RuleBook:
    """The rules of a gate, and a cache of clients with the rules that apply to each.

    :param limits: define the rules
    :param load: the event-loop lag
    :param denials: the networks that are denied at run time
    :param share: the gate's share in a fleet; None: it is in no fleet
    :param before: the previous rule book, whose unchanged rules are kept
    :ivar rules: the rules in the order of evaluation
    :ivar handshake_rules: the rules about TLS handshakes
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
        self.rules: tuple[Rule, ...] = _keep_unchanged(limits.rules(load, denials, share), old)
        old = before.handshake_rules if before else ()
        self.handshake_rules: tuple[Rule, ...] = _keep_unchanged(limits.handshake_rules(), old)
        self._rule_sets: dict[tuple[object, ...], RuleSet] = {}
        self._clients: dict[str | None, Client] = {}
        self._proxies: dict[str | None, Client] = {}

    def client(self, peer: Peer, *, proxy: bool = False) -> Client:
        """Return the client of *peer*, from the cache if its host has connected before.

        :param proxy: whether it is a proxy that names its clients by XCLIENT
        """
        host = peer[0] if isinstance(peer, tuple) else peer
        if self._denials_version != self._denials.version:
            self._denials_version = self._denials.version
            self._clients.clear()
            self._proxies.clear()
        known = self._proxies if proxy else self._clients
        return known.get(host) or self._add_client(host, known)

    def _add_client(self, host: str | None, known: dict[str | None, Client]) -> Client:
        limits = self._limits
        client = Client(host, limits.ipv6_prefix)
        client.exempt = limits.exempt is not None and bool(limits.exempt.find(client.number))
        client.limit = limits.limit_connections if client.exempt else limits.open_to_all
        client.proxy = known is self._proxies
        client.exempt = client.exempt or client.proxy
        client.rules = self._rule_set(client)
        refusing = self._refusing_rule(client)
        if refusing is not None:
            client.rules = client.rules._replace(on_arrival=(refusing,), on_header=(refusing,))
        if len(known) >= MAX_CLIENTS:
            known.clear()
        known[host] = client
        return client

    def _rule_set(self, client: Client) -> RuleSet:
        """Return the rules that apply to *client*; cached, as there are few kinds of clients."""
        kind = client.exempt, client.ipv6, client.local, client.key is None
        page = self._rule_sets.get(kind)
        if page is None:
            page = self._rule_sets[kind] = self._build_rule_set(client)
        return page

    def _build_rule_set(self, client: Client) -> RuleSet:
        rules = [r for r in self.rules if not r.address_only and r.concerns(client)]
        handshake_rules = [rule for rule in self.handshake_rules if rule.concerns(client)]
        asked = [rule for rule in rules if not (client.exempt and rule.skips_exempt)]
        return RuleSet(
            on_arrival=tuple(asked),
            on_header=tuple(rule for rule in asked if not rule.arrival_only),
            on_handshake=() if client.exempt else tuple(handshake_rules),
            counting=tuple(rule for rule in rules if type(rule).enter is not Rule.enter),
            timed=tuple(rule for rule in rules if type(rule).arrived is not Rule.arrived),
            timed_handshakes=tuple(handshake_rules),
        )

    def _refusing_rule(self, client: Client) -> Rule | None:
        """Return the rule that always refuses this address, or None."""
        rules = (r for r in self.rules if not (client.exempt and r.skips_exempt))
        refusing = (r for r in rules if r.address_only and r.judge(client, Counts(), 0.0))
        return next(refusing, None)


def _keep_unchanged(rules: Iterable[Rule], before: Iterable[Rule]) -> tuple[Rule, ...]:
    """Return *rules*, but of unchanged rules the objects in *before*, which have their counts."""
    return tuple(next((old for old in before if rule.is_same_as(old)), rule) for rule in rules)
