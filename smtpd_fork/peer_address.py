"""Peer addresses: what accept(2) returns, and the address that a client is counted by.

:mod:`ipaddress` makes an object of each address; inet_pton(3) is all that a connection needs here.
"""

from __future__ import annotations

from socket import AF_INET6, inet_ntop, inet_pton

__all__ = ["Peer", "SocketAddress", "describe", "host_of", "plain_peer"]

SocketAddress = tuple[str, int] | tuple[str, int, int, int]
"""An ``AF_INET`` or ``AF_INET6`` address as :mod:`socket` gives it."""

Peer = SocketAddress | str | None
"""A peer: an address, a bare IP address, or (unix sockets) an empty string or None."""

_MAPPED = bytes(10) + b"\xff\xff"
"""The first 12 bytes of an IPv4-mapped IPv6 address (RFC 4291 2.5.5.2)."""


def host_of(peer: Peer) -> str | None:
    """Return the address that *peer* is counted by; None for a client of a unix socket.

    IPv4-mapped IPv6 addresses are IPv4: a dual-stack listener would otherwise count a client twice,
    or (as qpsmtpd on its default address) not at all. Scope ids are dropped, and IPv6 has its
    canonical form (RFC 5952).
    """
    host = peer if isinstance(peer, str) or peer is None else peer[0]
    if not host:
        return None
    if ":" not in host:
        return host
    try:
        packed = inet_pton(AF_INET6, host.partition("%")[0])
    except (OSError, ValueError):
        return host  # no address: a name that an embedder gave
    if packed.startswith(_MAPPED):
        return "{}.{}.{}.{}".format(*packed[12:])
    return inet_ntop(AF_INET6, packed)


def plain_peer(peer: Peer) -> Peer:
    """Return *peer* with an IPv4-mapped address as plain ``(IPv4, port)``; others as they are."""
    if isinstance(peer, tuple) and peer[0].startswith("::ffff:"):
        host = host_of(peer)
        if host is not None and ":" not in host:
            return (host, peer[1])
    return peer


def describe(peer: Peer) -> str:
    """Return *peer* as logs show it: ``192.0.2.1:40312``, ``[2001:db8::1]:25``, ``unix``."""
    if not peer:
        return "unix"
    if isinstance(peer, str):
        return peer
    host = host_of(peer) or peer[0]
    return f"[{host}]:{peer[1]}" if ":" in host else f"{host}:{peer[1]}"
