"""PROXY header: parser for versions 1 and 2 of haproxy's proxy-protocol.txt, without sockets.

The result is aiosmtpd's :class:`ProxyData`, which handlers expect. aiosmtpd's own parser is not
used: it checks the family before the command, so that it may refuse a health check (``LOCAL``,
whose family and addresses a receiver must ignore), and it logs the headers that it refuses.
"""

from __future__ import annotations

import re
import struct
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from aiosmtpd.proxy_protocol import (
    AF,
    PROTO,
    V2_CMD,
    V2_SIGNATURE,
    V2_VALID_CMDS,
    V2_VALID_FAMS,
    V2_VALID_PROS,
    ProxyData,
)

if TYPE_CHECKING:
    from smtpd_fork.peer_address import SocketAddress

__all__ = ["MAX_V2_BYTES", "HeaderError", "bytes_to_read", "is_complete", "named_client", "parse"]

MAX_V1_BYTES = 107
"""Maximum bytes of a v1 header with its CR LF, by the specification."""

V1 = b"PROXY "
V2_FIXED = 16
"""Bytes of a v2 header before its addresses: signature, version, family, length."""

MAX_V2_BYTES = V2_FIXED + 0xFFFF
"""Maximum bytes of a v2 header with TLVs: the length field has 16 bits. Only trusted proxies may
send it."""

_ADDRESSES: dict[int, tuple[type[IPv4Address | IPv6Address | bytes], struct.Struct]] = {
    AF.INET: (IPv4Address, struct.Struct("!4s4sHH")),
    AF.INET6: (IPv6Address, struct.Struct("!16s16sHH")),
    AF.UNIX: (bytes, struct.Struct("!108s108s")),
}
"""For each family, the type of an address, and the layout of the address block of a v2 header."""

_V1_FAMILIES: dict[bytes, tuple[AF, type[IPv4Address | IPv6Address]]] = {
    b"TCP4": (AF.INET, IPv4Address),
    b"TCP6": (AF.INET6, IPv6Address),
}

_V1_ADDRESS = re.compile(rb"[0-9a-fA-F.:]+")
_V1_PORT = re.compile(rb"0|[1-9][0-9]{0,4}")


class HeaderError(ValueError):
    """The bytes are not a PROXY header."""


def bytes_to_read(header: bytes, peeked: bytes) -> int:
    """Return how many bytes of *peeked* belong to the header that begins with *header*.

    :raises HeaderError: the bytes are not the beginning of a header, or it is too long
    """
    seen = header + peeked
    for start, fixed in ((V1, len(V1)), (V2_SIGNATURE, V2_FIXED)):
        if seen[:fixed].startswith(start[: len(seen)]):
            break
    else:
        raise HeaderError("not a PROXY header")
    if seen.startswith(V1):
        end = seen.find(b"\r\n", 0, MAX_V1_BYTES)
        length = end + 2 if end >= 0 else len(seen) + 1
        if length > MAX_V1_BYTES:
            raise HeaderError("the PROXY header is too long")
    else:
        length = V2_FIXED
        if len(seen) >= V2_FIXED:
            length += int.from_bytes(seen[V2_FIXED - 2 : V2_FIXED])
    return min(len(peeked), length - len(header))


def is_complete(header: bytes) -> bool:
    """Whether *header*, which was read as far as :func:`bytes_to_read` said, is complete."""
    if header.startswith(V1):
        return header.endswith(b"\r\n")
    return len(header) >= V2_FIXED and len(header) == V2_FIXED + int.from_bytes(
        header[V2_FIXED - 2 : V2_FIXED]
    )


def parse(header: bytes) -> ProxyData:
    """Parse a complete header.

    :raises HeaderError: it is malformed
    """
    return _parse_v1(header) if header.startswith(V1) else _parse_v2(header)


def named_client(data: ProxyData) -> SocketAddress | str | None:
    """Return the client that a header names, or None.

    The result is None for a health check, for ``UNKNOWN``, and for a family and transport that SMTP
    does not use: then the address of the connection is used, as the specification says.
    """
    if data.src_addr is None or data.protocol != PROTO.STREAM:
        return None
    if data.family in {AF.INET, AF.INET6}:
        return (str(data.src_addr), int(data.src_port or 0))
    return ""  # the client of a unix socket


def _data(version: int, header: bytes, **fields: object) -> ProxyData:
    # setattr, as mypy does not see the attributes that attrs creates.
    data = ProxyData(version=version)
    for name, value in {"whole_raw": bytearray(header), **fields}.items():
        setattr(data, name, value)
    return data


def _parse_v1(header: bytes) -> ProxyData:
    name, _, rest = header[len(V1) : -2].partition(b" ")
    if name == b"UNKNOWN":  # the receiver must ignore the rest of the line
        ignored = b" " + rest if rest else b""
        return _data(1, header, family=AF.UNSPEC, protocol=PROTO.UNSPEC, rest=ignored)
    if name not in _V1_FAMILIES:
        raise HeaderError("v1: unknown protocol or family")
    family, address = _V1_FAMILIES[name]
    fields = rest.split(b" ")
    if len(fields) != 4:  # noqa: PLR2004 - two addresses, two ports
        raise HeaderError("v1: not two addresses and two ports")
    try:
        source, destination = (address(_v1_address(field)) for field in fields[:2])
    except ValueError:
        raise HeaderError("v1: malformed address") from None
    return _data(
        1,
        header,
        family=family,
        protocol=PROTO.STREAM,
        src_addr=source,
        dst_addr=destination,
        src_port=_v1_port(fields[2]),
        dst_port=_v1_port(fields[3]),
    )


def _v1_address(field: bytes) -> str:
    # IPv6Address would accept a scope as well, which a header must not have.
    if not _V1_ADDRESS.fullmatch(field):
        raise ValueError
    return field.decode("ascii")


def _v1_port(field: bytes) -> int:
    if not _V1_PORT.fullmatch(field) or int(field) > 0xFFFF:  # noqa: PLR2004 - the highest port
        raise HeaderError("v1: malformed port")
    return int(field)


def _parse_v2(header: bytes) -> ProxyData:
    version, command = divmod(header[12], 16)
    if version != 2:  # noqa: PLR2004 - the version of this signature
        raise HeaderError("v2: unknown version")
    if command not in V2_VALID_CMDS:
        raise HeaderError("v2: unknown command")
    family, protocol = divmod(header[13], 16)
    if command == V2_CMD.LOCAL:
        # A connection of the proxy itself. The specification says: "discard the protocol block
        # including the family".
        family, protocol = AF.UNSPEC, PROTO.UNSPEC
    if family not in V2_VALID_FAMS:
        raise HeaderError("v2: unknown family")
    if protocol not in V2_VALID_PROS:
        raise HeaderError("v2: unknown transport")
    addresses: dict[str, object] = {"rest": header[V2_FIXED:]}
    if family != AF.UNSPEC and protocol != PROTO.UNSPEC:
        addresses = _v2_addresses(AF(family), header)
    return _data(
        2,
        header,
        command=V2_CMD(command),
        family=AF(family),
        protocol=PROTO(protocol),
        **addresses,
    )


def _v2_addresses(family: AF, header: bytes) -> dict[str, object]:
    address, block = _ADDRESSES[family]
    end = V2_FIXED + block.size
    if len(header) < end:
        raise HeaderError("v2: truncated addresses")
    source, destination, *ports = block.unpack_from(header, V2_FIXED)
    found: dict[str, object] = {"src_addr": address(source), "dst_addr": address(destination)}
    if ports:
        found["src_port"], found["dst_port"] = ports
    if rest := header[end:]:
        found |= {"rest": rest, "tlv_start": end}
    return found
