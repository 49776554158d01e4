"""Limits of a gate, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from smtpd_fork.config import IPV6_PREFIX, LIMIT_CONNECTIONS, MAX_FROM_IP
from smtpd_fork.gate.networks import BITS
from smtpd_fork.gate.rules import (
    AccessRule,
    ClientLimitRule,
    FairShareRule,
    NetworkLimitRule,
    OverloadRule,
    RateRule,
    RehearsalRule,
    handshake_rules,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smtpd_fork.gate.networks import NetworkTable
    from smtpd_fork.gate.rules import AccessList, Load, NetworkLimit, Rate, Rule

__all__ = ["Limits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of a gate. Every rule but the first is off unless it is named.

    :param limit_connections: sessions in all, at least 1
    :param max_from_ip: sessions from one client; 0 is no limit. Does not override the former.
    :param ipv6_prefix: bits of the network by which an IPv6 client is counted
    :param max_from_net: sessions from one network, for networks of several sizes. A share is at
        least what ``max_from_ip`` gives one client, if that is not the default; without a limit
        there, shares are none either
    :param rates: new sessions in a time, from one client or one network
    :param tls_failure_rate: TLS handshakes of one client that fail, or do not end, in a time; four
        times as many of one /24 or /48
    :param access: the allowlist and the denylist
    :param exempt: networks to which the limits per client do not apply
    :param reserve: connection slots for exempt clients only
    :param fair_share: whether a client with more than its share is refused while slots are short
    :param refuse_first: how many of the first clients are refused, to test what clients do then
    :param refuse_every: after those, each Nth client is refused
    :param max_loop_lag: seconds of event-loop lag from which on clients are refused; 0: never
    :raises ValueError: a figure out of its range
    """

    limit_connections: int = LIMIT_CONNECTIONS
    max_from_ip: int = MAX_FROM_IP
    ipv6_prefix: int = IPV6_PREFIX
    max_from_net: tuple[NetworkLimit, ...] = ()
    rates: tuple[Rate, ...] = ()
    tls_failure_rate: Rate | None = None
    access: AccessList | None = None
    exempt: NetworkTable[bool] | None = None
    reserve: int = 0
    fair_share: bool = False
    refuse_first: int = 0
    refuse_every: int = 0
    max_loop_lag: float = 0.0

    def __post_init__(self) -> None:
        if self.limit_connections < 1:
            raise ValueError(f"limit_connections must be at least 1, not {self.limit_connections}")
        for name in ("max_from_ip", "reserve", "refuse_first", "refuse_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, not {getattr(self, name)}")
        if not 1 <= self.ipv6_prefix <= BITS:
            raise ValueError(f"ipv6_prefix must be 1 to {BITS}, not {self.ipv6_prefix}")
        if self.reserve >= self.limit_connections:
            raise ValueError(
                f"reserve must be less than limit_connections, {self.limit_connections}, "
                f"not {self.reserve}"
            )

    def rules(self, load: Load) -> Iterator[Rule]:
        """Return the rules that are on, in the order in which they are asked.

        :param load: the event-loop lag
        """
        # An -m that was raised, for a relay perhaps, is meant: a share does not take it back.
        own = 0 if self.max_from_ip == MAX_FROM_IP else self.max_from_ip
        if self.refuse_first or self.refuse_every:
            yield RehearsalRule(self.refuse_first, self.refuse_every)
        if self.access is not None:
            yield AccessRule(self.access)
        if self.max_loop_lag:
            yield OverloadRule(load, self.max_loop_lag)
        if self.max_from_ip:
            yield ClientLimitRule(self.max_from_ip)
        for limit in self.max_from_net:
            if not limit.share:
                yield NetworkLimitRule(limit, limit.sessions)
            elif self.max_from_ip:
                yield NetworkLimitRule(limit, max(limit.of(self.limit_connections), own))
        if self.fair_share:
            yield FairShareRule(self.limit_connections)
        yield from map(RateRule, self.rates)

    def handshake_rules(self) -> Iterator[Rule]:
        """Return the rules that are asked before a TLS handshake."""
        if self.tls_failure_rate is not None:
            yield from handshake_rules(self.tls_failure_rate)
