"""Addresses of clients as accept(2) returns them, and the form in which clients are counted.

inet_pton(3) is used instead of :mod:`ipaddress`, whose objects are slow to create, as this runs for
each connection.
"""

from __future__ import annotations

from socket import AF_INET6, inet_ntop, inet_pton

__all__ = ["Peer", "SocketAddress", "describe", "host_of", "plain_peer"]

SocketAddress = tuple[str, int] | tuple[str, int, int, int]
"""An ``AF_INET`` or ``AF_INET6`` address in the form of :mod:`socket`."""

Peer = SocketAddress | str | None
"""A peer: an address, a bare IP address, or (unix sockets) an empty string or None."""

_MAPPED = bytes(10) + b"\xff\xff"
"""The first 12 bytes of an IPv4-mapped IPv6 address (RFC 4291 2.5.5.2)."""


def host_of(peer: Peer) -> str | None:
    """Return the IP address by which *peer* is counted; None for a client of a unix socket.

    An IPv4-mapped IPv6 address is returned as IPv4. Otherwise a dual-stack listener would count a
    client under two addresses, or (as qpsmtpd does on its default address) not at all. The scope id
    is removed, and IPv6 addresses are in canonical form (RFC 5952).
    """
    host = peer if isinstance(peer, str) or peer is None else peer[0]
    if not host:
        return None
    if ":" not in host:
        return host
    try:
        packed = inet_pton(AF_INET6, host.partition("%")[0])
    except (OSError, ValueError):
        return host  # not an address, but a name that the embedding program passed
    if packed.startswith(_MAPPED):
        return "{}.{}.{}.{}".format(*packed[12:])
    return inet_ntop(AF_INET6, packed)


def plain_peer(peer: Peer) -> Peer:
    """Return ``(IPv4, port)`` for an IPv4-mapped address, and any other *peer* unchanged."""
    if isinstance(peer, tuple) and peer[0].startswith("::ffff:"):
        host = host_of(peer)
        if host is not None and ":" not in host:
            return (host, peer[1])
    return peer


def describe(peer: Peer) -> str:
    """Return the form of *peer* in logs: ``192.0.2.1:40312``, ``[2001:db8::1]:25``, ``unix``."""
    if not peer:
        return "unix"
    if isinstance(peer, str):
        return peer
    host = host_of(peer) or peer[0]
    return f"[{host}]:{peer[1]}" if ":" in host else f"{host}:{peer[1]}"
