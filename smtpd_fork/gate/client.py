"""Client: the properties of a host that connects, as the gate's rules use them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smtpd_fork.gate.networks import Prefix, is_ipv4, is_local, number_of
from smtpd_fork.peer_address import host_of

if TYPE_CHECKING:
    from smtpd_fork.gate.rule_book import RuleSet
    from smtpd_fork.gate.rules.fleet import FleetCheck
    from smtpd_fork.peer_address import Peer

__all__ = ["Client"]


class Client:
    """A host that connects. Its connections share one object until the limits change.

    :param peer: from accept(2) or a PROXY header; the port does not matter
    :param ipv6_prefix: length of the prefix by which an IPv6 client is counted: a host with one
        address of a /64 can use all of them
    :ivar number: its address (see :mod:`smtpd_fork.gate.networks`); None if it has none
    :ivar ipv6: whether the address is an IPv6 address; None if it has none
    :ivar key: the text by which it is counted: an IPv4 address or an IPv6 network; another text
        that an embedding program uses for a peer, unchanged; None for a client of a unix socket
    :ivar local: whether the address belongs to this host, or is private
    :ivar exempt: whether the limits per client do not apply to it
    :ivar proxy: whether it is a proxy that names its clients by XCLIENT; until then it is exempt
    :ivar limit: it is admitted while there are fewer sessions in all; the gate sets it
    :ivar rules: the rules that apply to it; the gate sets it
    :ivar fleet_checks: the limits that a fleet is asked about; None: not determined yet
    """

    __slots__ = (
        "exempt", "fleet_checks", "ipv6", "key", "limit", "local", "number", "proxy",
        "rules",
    )  # fmt: skip

    limit: int
    rules: RuleSet
    fleet_checks: tuple[FleetCheck, ...] | None

    def __init__(self, peer: Peer, ipv6_prefix: int) -> None:
        host = host_of(peer)
        self.number = number_of(host) if host is not None else None
        self.ipv6 = None if self.number is None else not is_ipv4(self.number)
        self.local = is_local(self.number)
        self.key = host
        if self.number is not None and self.ipv6:
            self.key = Prefix(ipv6_prefix, ipv6=True).network_of(self.number)
        self.exempt = self.proxy = False
        self.fleet_checks = None
