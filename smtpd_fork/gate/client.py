"""Client: who asks to come in, as far as the gate has to know."""

from __future__ import annotations

from socket import AF_INET6, inet_ntop, inet_pton
from typing import TYPE_CHECKING

from smtpd_fork.gate.networks import BITS, V4_BITS, is_ipv4, number_of
from smtpd_fork.net import source_key

if TYPE_CHECKING:
    from smtpd_fork.net import Peer

__all__ = ["Client", "network_text", "source_of"]


def source_of(peer: Peer, ipv6_prefix: int) -> str | None:
    """Return the source that *peer* is counted by: an IPv4 address, or a network of IPv6.

    Who has one address of IPv6 has all of its /64, and would be as many sources as it likes.
    None for a peer without an address.
    """
    host = source_key(peer)
    if host is None or ipv6_prefix == BITS or ":" not in host:
        return host
    try:
        packed = inet_pton(AF_INET6, host)
    except OSError:
        return host  # an embedder's own name for a peer
    number = int.from_bytes(packed) >> (BITS - ipv6_prefix) << (BITS - ipv6_prefix)
    return f"{inet_ntop(AF_INET6, number.to_bytes(16))}/{ipv6_prefix}"


def network_text(number: int, prefix: int) -> str:
    """Return the network of so many bits around an address, as people write it."""
    first = number >> (BITS - prefix) << (BITS - prefix)
    if prefix >= BITS - V4_BITS and is_ipv4(first):
        return "{}.{}.{}.{}/{}".format(*first.to_bytes(16)[12:], prefix - (BITS - V4_BITS))
    return f"{inet_ntop(AF_INET6, first.to_bytes(16))}/{prefix}"


class Client:
    """A peer at the gate.

    :param peer: as accept(2) named it, or a PROXY header
    :param ipv6_prefix: bits of the network that an address of IPv6 is counted by
    :ivar source: what it is counted by; None for a unix socket's
    :ivar exempt: whether rules about sources leave it alone
    """

    __slots__ = ("_number", "exempt", "peer", "source")

    def __init__(self, peer: Peer, ipv6_prefix: int) -> None:
        self.peer = peer
        host = peer[0] if type(peer) is tuple else peer
        # What mostly comes is an address of IPv4, and its own source.
        plain = type(host) is str and host and ":" not in host
        self.source: str | None = host if plain else source_of(peer, ipv6_prefix)  # type: ignore[assignment]  # as plain says
        self.exempt = False
        self._number: int | None = -1

    @property
    def number(self) -> int | None:
        """Its address as a number (see :mod:`smtpd_fork.gate.networks`); None if it has none."""
        if self._number == -1:
            host = source_key(self.peer)
            self._number = number_of(host) if host is not None else None
        return self._number
