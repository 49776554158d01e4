"""FleetRule: max_from_ip, max_from_net, rate and rate_net over all nodes of a fleet.

The rule refuses clients that were over a limit of the fleet a moment ago, and counts sessions for
the fleet. About all other clients, the fleet is asked before their greeting
(:mod:`smtpd_fork.fleet`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from smtpd_fork.gate.rules.base import Counts, Rule
from smtpd_fork.gate.rules.rate import RateRule
from smtpd_fork.gate.verdict import Refusal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smtpd_fork.gate.client import Client
    from smtpd_fork.gate.fleet_share import FleetShare
    from smtpd_fork.gate.networks import Prefix
    from smtpd_fork.gate.rules.rate import Rate

__all__ = ["FleetCheck", "FleetLimit", "FleetRule"]

SCOPE = "fleet"


class FleetLimit(NamedTuple):
    """A limit that applies to all nodes together.

    :ivar rule: name of the option
    :ivar limit: maximum of concurrent sessions, or of new sessions per period
    :ivar prefix: the size of the networks; None: it is a limit per client
    :ivar rate: the rate; None: it is a limit of concurrent sessions
    :ivar share: whether it excludes local networks, as a share of :class:`NetworkLimit` does
    """

    rule: str
    limit: int
    prefix: Prefix | None = None
    rate: Rate | None = None
    share: bool = False

    def _excludes(self, client: Client) -> bool:
        return self.share and client.local

    def check(self, client: Client) -> FleetCheck | None:
        """Return the check of *client* by the fleet; None if the limit does not apply to it."""
        prefix, rate = self.prefix, self.rate
        if prefix is None:
            name = client.key
        elif client.number is None or client.ipv6 is not prefix.ipv6 or self._excludes(client):
            name = None
        else:
            name = prefix.network_of(client.number)
        if name is None:
            return None
        if rate is None:
            kind = "c" if prefix is None else "n"
            return FleetCheck(f"{kind}:{name}", self, name)
        kind = f"{'r' if prefix is None else 'rn'}:{rate.sessions}/{rate.seconds:g}"
        interval = round(rate.seconds / rate.sessions * 1e6)
        most = round(rate.seconds * 1e6) - interval
        return FleetCheck(f"{kind}:{name}", self, name, max(1, interval), most)


class FleetCheck(NamedTuple):
    """The check of one limit for one client.

    :ivar key: the key of the count, without the prefix of the fleet
    :ivar limit: the limit
    :ivar name: the client or network, for the reply and the log
    :ivar interval: for a rate, microseconds from one session to the next; 0: the limit is of
        concurrent sessions
    :ivar most: for a rate, microseconds by which its sessions may be ahead
    """

    key: str
    limit: FleetLimit
    name: str
    interval: int = 0
    most: int = 0

    def refusal(self, count: int) -> Refusal:
        """Return the refusal of a client that would increase the count to *count*."""
        limit = self.limit
        refusal = Refusal(limit.rule, self.name, count, limit.limit, scope=SCOPE)
        if limit.rate is not None:
            refusal.text = RateRule.text
        return refusal


class FleetRule(Rule):
    """Refuses clients that are over a limit of the fleet, and counts sessions for the fleet.

    :param limits: the limits that apply to all nodes together
    :param share: the data that the gate and the fleet exchange
    """

    name = SCOPE

    def __init__(self, limits: Sequence[FleetLimit], share: FleetShare) -> None:
        self._limits = limits
        self._share = share

    def checks(self, client: Client) -> tuple[FleetCheck, ...]:
        """Return the checks of *client* by the fleet."""
        if client.fleet_checks is None:
            found = (limit.check(client) for limit in self._limits)
            client.fleet_checks = tuple(check for check in found if check is not None)
        return client.fleet_checks

    def concerns(self, client: Client) -> bool:
        """Return whether the client has a key by which it is counted, and is not exempt."""
        return client.key is not None and not client.exempt

    def judge(self, client: Client, counts: Counts, now: float) -> Refusal | None:
        """Refuse a client that was over a limit a moment ago."""
        share = self._share
        if not share.over:
            return None
        for check in self.checks(client):
            known = share.over_limit(check.key, now)
            if known is not None:
                return check.refusal(known.sessions)
        return None

    def enter(self, client: Client) -> None:
        """Count a session."""
        for check in self.checks(client):
            if not check.interval:
                self._share.enter(check.key)

    def leave(self, client: Client) -> None:
        """Uncount a session."""
        for check in self.checks(client):
            if not check.interval:
                self._share.leave(check.key)
