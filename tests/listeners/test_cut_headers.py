"""A PROXY header is read correctly from packets of any size, without the data after it."""

from __future__ import annotations

import pytest
from aiosmtpd.proxy_protocol import V2_SIGNATURE
from support.cuts import all_cuts
from support.proxy import BROKEN_V1, V1, V2

from smtpd_fork.listeners.proxy_header import HeaderError, bytes_to_read, is_complete, parse

MAX_V1_BYTES = b"PROXY UNKNOWN " + b"x" * 91 + b"\r\n"
HEADERS = [
    V1, V2, BROKEN_V1, MAX_V1_BYTES, MAX_V1_BYTES[:-2] + b"x\r\n", b"PROXY UNKNOWN\r\r\n",
    b"PROXY \r\n", b"PROXX TCP4\r\n", b"\r\n\r\n\0\r\nQUIX\n" + bytes(4), b"EHLO x\r\n",
    V2_SIGNATURE + b"\x20\0\0\0", V2_SIGNATURE + b"\x21\x11\0\1x",
]  # fmt: skip


def read_header(packets: list[bytes]) -> object:
    """Read a header as a listener does: peek at the data, and read the bytes of the header."""
    header = waiting = b""
    for packet in packets:
        waiting += packet
        while waiting and not is_complete(header):
            try:
                count = bytes_to_read(header, waiting)
            except HeaderError:
                return "no header"
            header, waiting = header + waiting[:count], waiting[count:]
            if not count:
                break
    if not is_complete(header):
        return "not whole"
    try:
        data = parse(header)
    except HeaderError:
        return "no header"
    return data.command, data.src_addr, data.src_port, waiting


@pytest.mark.parametrize("header", HEADERS)
def test_a_proxy_header_is_read_correctly_from_packets_of_any_size(header: bytes) -> None:
    stream = header + b"EHLO x\r\nQUIT\r\n"
    expected = read_header([stream])
    for packets in all_cuts(stream):
        assert read_header(packets) == expected
