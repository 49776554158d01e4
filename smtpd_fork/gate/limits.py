"""Limits: the limits of a gate, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Unpack

from smtpd_fork.config import IPV6_PREFIX, LIMIT_CONNECTIONS, MAX_FROM_IP, Config
from smtpd_fork.gate.rules import (
    AccessRule,
    ClientLimitRule,
    FairShareRule,
    FleetLimit,
    FleetRule,
    NetworkLimitRule,
    OverloadRule,
    RateRule,
    RefuseEveryRule,
    handshake_rules,
)
from smtpd_fork.gate.settings import READERS, is_read
from smtpd_fork.setting_errors import no_such_setting
from smtpd_fork.setting_types import LocalCount

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smtpd_fork.gate.denials import Denials
    from smtpd_fork.gate.fleet_share import FleetShare
    from smtpd_fork.gate.rules import Load, NetworkLimit, NetworkList, Rate, Rule
    from smtpd_fork.settings import GateSettings

__all__ = ["GATE_SETTINGS", "Limits", "limits_of"]


@dataclass(frozen=True, slots=True, init=False)
class Limits:
    """The limits of a gate. Only the first two are on by default.

    Names and values are those of the options: ``Limits(rate="30/m", deny=["./bad.list"])``. Files
    are read at once.

    :param limit_connections: maximum sessions in all, at least 1
    :param max_from_ip: maximum sessions from one client; 0: only ``limit_connections`` applies
    :param ipv6_prefix: length of the prefix by which an IPv6 client is counted
    :param max_from_net: maximum sessions from one network, for networks of several sizes. A share
        is at least ``max_from_ip``, if that is not the default; with ``max_from_ip=0``, shares are
        off
    :param rate: new sessions per period from one client
    :param rate_net: new sessions per period from one network
    :param tls_failure_rate: failed and unfinished TLS handshakes of one client per period; four
        times as many of one /24 or /48
    :param allow: networks, or files of networks, that are not denied
    :param deny: networks, or files of networks, that are denied
    :param exempt: networks, or files of networks, to which the limits per client do not apply
    :param reserve: connection slots for exempt clients only
    :param fair_share: whether to refuse a client with more than its share while slots are short
    :param refuse_first: how many of the first clients are refused, for testing
    :param refuse_every: refuse each Nth client after those, for testing
    :param max_loop_lag: event-loop lag in seconds above which clients are refused; 0: no limit
    :raises SettingError: a setting is unknown, cannot be read, or is out of its range
    """

    limit_connections: int = LIMIT_CONNECTIONS
    max_from_ip: int = MAX_FROM_IP
    ipv6_prefix: int = IPV6_PREFIX
    max_from_net: tuple[NetworkLimit, ...] = ()
    rate: tuple[Rate, ...] = ()
    rate_net: tuple[Rate, ...] = ()
    tls_failure_rate: Rate | None = None
    allow: NetworkList | None = None
    deny: NetworkList | None = None
    exempt: NetworkList | None = None
    reserve: int = 0
    fair_share: bool = False
    refuse_first: int = 0
    refuse_every: int = 0
    max_loop_lag: float = 0.0

    def __init__(self, **settings: Unpack[GateSettings]) -> None:
        given: dict[str, Any] = {n: value for n, value in settings.items() if value is not None}
        for name in given.keys() - GATE_SETTINGS:
            raise no_such_setting(name, given[name], sorted(GATE_SETTINGS))
        values = {**_DEFAULTS, **given}
        read = {name: values.pop(name) for name in READERS if is_read(values[name])}
        some = {"exempt": "as read"} if read.get("exempt") is not None else {}
        config = Config.build({**some, **values})
        for name in GATE_SETTINGS:
            value = read[name] if name in read else getattr(config, name)
            if name in READERS and name not in read:
                value = READERS[name](name, value)
            object.__setattr__(self, name, value)

    @property
    def open_to_all(self) -> int:
        """The maximum of sessions without the slots that are reserved for exempt clients."""
        return self.limit_connections - self.reserve

    def rules(
        self, load: Load, denials: Denials, share: FleetShare | None = None
    ) -> Iterator[Rule]:
        """Return the rules that are on, in the order of evaluation.

        :param load: the event-loop lag
        :param denials: the networks that are denied at run time
        :param share: the share of the gate in a fleet; the rules of this node are evaluated first
        """
        processes = 1 if share is None else share.processes
        if self.refuse_first or self.refuse_every:
            yield RefuseEveryRule(self.refuse_first, self.refuse_every)
        yield AccessRule(self.allow, self.deny, denials)
        if self.max_loop_lag:
            yield OverloadRule(load, self.max_loop_lag)
        if self.max_from_ip:
            yield ClientLimitRule(self.max_from_ip)
        for limit in self.max_from_net:
            if not limit.share:
                yield NetworkLimitRule(limit, limit.sessions)
            elif self.max_from_ip:
                yield NetworkLimitRule(limit, self._share_of(limit, processes))
        if self.fair_share:
            yield FairShareRule(self.limit_connections)
        yield from map(RateRule, (*self.rate, *self.rate_net))
        if share is not None:
            yield FleetRule(tuple(self.fleet_limits(processes)), share)

    def _share_of(self, limit: NetworkLimit, processes: int) -> int:
        """Return the number of sessions of a share, of the connection slots of all processes."""
        # A share is not below an -m that was set explicitly, perhaps for a relay.
        own = 0 if self.max_from_ip == MAX_FROM_IP else self.max_from_ip
        return max(limit.of(self.limit_connections * processes), own)

    def fleet_limits(self, processes: int = 1) -> Iterator[FleetLimit]:
        """Return the limits that apply to all nodes of a fleet together.

        :param processes: see :class:`FleetShare`
        """
        if self.max_from_ip and not isinstance(self.max_from_ip, LocalCount):
            yield FleetLimit(ClientLimitRule.name, self.max_from_ip)
        for limit in self.max_from_net:
            if not limit.share and not limit.local:
                yield FleetLimit(NetworkLimitRule.name, limit.sessions, limit.prefix)
            elif limit.share and self.max_from_ip and processes > 1:
                sessions = self._share_of(limit, processes)
                yield FleetLimit(NetworkLimitRule.name, sessions, limit.prefix, share=True)
        for rate in (*self.rate, *self.rate_net):
            if not rate.local:
                name = RateRule.name if rate.prefix is None else RateRule.network_name
                yield FleetLimit(name, rate.sessions, rate.prefix, rate)

    def handshake_rules(self) -> Iterator[Rule]:
        """Return the rules that are evaluated before a TLS handshake."""
        if self.tls_failure_rate is not None:
            yield from handshake_rules(self.tls_failure_rate)


_DEFAULTS = {each.name: each.default for each in fields(Limits)}

GATE_SETTINGS = frozenset(_DEFAULTS)
"""The names of the settings that are limits of a gate."""


def limits_of(config: Config) -> Limits:
    """Return the limits that *config* describes, after reading the files that it names.

    :raises SettingError: a network, a rate or a line of a file cannot be read; the text names
        setting, value, file and line
    """
    settings: Any = {name: getattr(config, name) for name in GATE_SETTINGS}
    return Limits(**settings)
