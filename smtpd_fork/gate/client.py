"""Client: what the gate knows of a host that connects."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smtpd_fork.gate.networks import Prefix, is_ipv4, is_local, number_of
from smtpd_fork.peer_address import host_of

if TYPE_CHECKING:
    from smtpd_fork.gate.rule_book import Page
    from smtpd_fork.gate.rules.fleet import FleetCheck
    from smtpd_fork.peer_address import Peer

__all__ = ["Client"]


class Client:
    """A host that connects. Its connections share one, as long as the limits do not change.

    :param peer: as accept(2) named it, or a PROXY header; its port does not matter
    :param ipv6_prefix: bits of the network by which an IPv6 client is counted: a host with one
        address of a /64 has all of them
    :ivar number: its address (see :mod:`smtpd_fork.gate.networks`); None if it has none
    :ivar ipv6: whether that is of IPv6; None if it has none
    :ivar key: what it is counted by: an IPv4 address, or a network of IPv6; an embedder's own
        name for a peer as it is; None for a unix socket's
    :ivar local: whether the address is of this host, or private
    :ivar exempt: whether the limits per client do not apply to it
    :ivar proxy: whether it is one that is to name its clients by XCLIENT: until then it is exempt
    :ivar limit: sessions of all clients up to which it is admitted; the gate sets it
    :ivar rules: those that apply to it; the gate sets it
    :ivar fleet_checks: what a fleet is asked about it; None: that was not worked out yet
    """

    __slots__ = (
        "exempt", "fleet_checks", "ipv6", "key", "limit", "local", "number", "proxy",
        "rules",
    )  # fmt: skip

    limit: int
    rules: Page
    fleet_checks: tuple[FleetCheck, ...] | None

    def __init__(self, peer: Peer, ipv6_prefix: int) -> None:
        host = host_of(peer)
        self.number = number_of(host) if host is not None else None
        self.ipv6 = None if self.number is None else not is_ipv4(self.number)
        self.local = is_local(self.number)
        self.key = host
        if self.number is not None and self.ipv6:
            self.key = Prefix(ipv6_prefix, ipv6=True).around(self.number)
        self.exempt = self.proxy = False
        self.fleet_checks = None
