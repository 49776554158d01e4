"""PROXY headers before a session: the client that they name, and invalid headers."""

from __future__ import annotations

import asyncio
import socket
import struct
from itertools import cycle
from typing import TYPE_CHECKING, Any

import pytest
from aiosmtpd.proxy_protocol import get_proxy
from hypothesis import given
from hypothesis import strategies as st
from support.client import Client
from support.handlers import Notes
from support.server import serve, until

from smtpd_fork.listeners.proxy_header import HeaderError, bytes_to_read, is_complete, parse
from smtpd_fork.sinks import Discard

if TYPE_CHECKING:
    from collections.abc import Callable

    from smtpd_fork import Server

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
V1 = b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 25\r\n"
V1_6 = b"PROXY TCP6 2001:db8::7 2001:db8::1 4711 25\r\n"


def v2(command: int, family: int, addresses: bytes, tlvs: bytes = b"") -> bytes:
    body = addresses + tlvs
    return SIGNATURE + bytes([0x20 | command, family]) + struct.pack("!H", len(body)) + body


def inet(host: str) -> bytes:
    return socket.inet_aton(host) + socket.inet_aton("198.51.100.1") + struct.pack("!HH", 4711, 25)


V2 = v2(1, 0x11, inet("192.0.2.7"), b"\x02\x00\x0bexample.com")
V2_6 = v2(
    1,
    0x21,
    socket.inet_pton(socket.AF_INET6, "2001:db8::7") * 2 + struct.pack("!HH", 4711, 25),
)
LOCAL = v2(0, 0x00, b"")
UNKNOWN = b"PROXY UNKNOWN\r\n"

UNIX = v2(1, 0x31, b"/run/client".ljust(108, b"\0") + b"/run/server".ljust(108, b"\0"))

NAMES_A_CLIENT = {
    "v1": V1,
    "v1, IPv6": V1_6,
    "v2": V2,
    "v2, IPv6": V2_6,
    "v2, 64 KiB of TLVs": v2(1, 0x11, inet("192.0.2.7"), b"\xe0\xff\x00" + b"x" * 0xFF00),
    "v2, TLVs of no known type": v2(1, 0x11, inet("192.0.2.7"), b"\xee\x00\x01x"),
    "v2, a TLV that is cut short": v2(1, 0x11, inet("192.0.2.7"), b"\x02\xff\xffx"),
}
NAMES_NOBODY = {
    "local": LOCAL,
    # A receiver must ignore the family and the addresses of LOCAL.
    "local, a short block": v2(0, 0x11, b"\1\2\3"),
    "local, a short block of IPv6": v2(0, 0x21, inet("192.0.2.7")),
    "local, a family that does not exist": v2(0, 0xF1, b""),
    "local, a transport that does not exist": v2(0, 0x1F, b"x" * 300),
    "local, addresses": v2(0, 0x11, inet("192.0.2.7")),
    "local, TLVs": v2(0, 0x00, b"", b"\x05\x00\x02id"),
    "v2, no family": v2(1, 0x00, b""),
    "v2, no family, TLVs": v2(1, 0x00, b"", b"\x05\x00\x02id"),
    "v2, no family, a transport": v2(1, 0x01, b"x" * 12),
    "v2, a family, no transport": v2(1, 0x10, inet("192.0.2.7")),
    "v2, datagrams": v2(1, 0x12, inet("192.0.2.7")),
    "unknown": UNKNOWN,
    "unknown, words": b"PROXY UNKNOWN ffff:f::1 ffff:f::2 65535 65535\r\n",
    "unknown, anything": b"PROXY UNKNOWN  \n \0 \xff\r\n",
}
GOOD = NAMES_A_CLIENT | NAMES_NOBODY


def proxied(handler: Any = None, **options: Any) -> Any:
    options.setdefault("proxy_trust", "127.0.0.1")
    options.setdefault("listen", ["smtp+proxy:127.0.0.1:0"])
    return serve(handler or Discard(), **options)


async def sent(server: Server, data: bytes, **options: Any) -> Client:
    client = await Client.to(server.addresses[0], **options)
    client.send(data)
    return client


@pytest.mark.parametrize(
    ("header", "pieces"),
    [
        pytest.param(header, pieces, id=f"{name}, {pieces}")
        for name, header in GOOD.items()
        for pieces in ("whole", "bytes")
        if pieces == "whole" or len(header) < 100
    ],
)
async def test_a_header_names_the_client(header: bytes, pieces: str) -> None:
    handler = Notes()
    async with proxied(handler, max_from_ip=1) as server:
        client = await sent(server, b"" if pieces == "bytes" else header)
        if pieces == "bytes":
            for byte in header:
                client.send(bytes([byte]))
                await asyncio.sleep(0.001)
        assert (await client.greet()).code == 250
        assert (await client.deliver()).code == 250
        (session,) = handler.sessions
        expected = "2001:db8::7" if b"TCP6" in header or header == V2_6 else "192.0.2.7"
        (entry,) = server.gate.ledger()
        assert entry.sender == client.writer.get_extra_info("sockname")
        if header in NAMES_NOBODY.values():
            assert session.peer[0] == "127.0.0.1"
            assert server.gate.clients == {}
        else:
            assert session.peer == entry.peer == (expected, 4711)
            assert list(server.gate.clients.values()) == [1]
        assert session.proxy_data.valid
        if header == V2:
            assert session.proxy_data.tlv["AUTHORITY"] == b"example.com"
        await client.close()


async def test_per_client_limits_apply_to_the_client_in_the_header() -> None:
    async with proxied(max_from_ip=1, deny="203.0.113.0/24") as server:
        first = await sent(server, V1)
        assert (await first.greet()).code == 250
        second = await sent(server, V1)
        assert "from 192.0.2.7, try" in (await second.reply()).text
        assert await second.ended()
        other = await sent(server, V1.replace(b"192.0.2.7", b"192.0.2.8"))
        assert (await other.greet()).code == 250
        denied = await sent(server, V1.replace(b"192.0.2.7", b"203.0.113.9"))
        assert (await denied.reply()).code == 554
        own = V1.replace(b"192.0.2.7", b"127.0.0.1")  # like haproxy's checks in version 1
        checks = [await sent(server, header) for header in (LOCAL, UNKNOWN, own, own, own)]
        for check in checks:
            assert (await check.greet()).code == 250
        assert server.gate.count == 7
        for client in (first, second, other, denied, *checks):
            await client.close()


async def test_an_untrusted_proxy_gets_421(caplog: pytest.LogCaptureFixture) -> None:
    async with proxied() as server:
        client = await sent(server, V1, source="127.0.0.2")
        code, (text,) = await client.reply()
        assert (code, text[:5]) == (421, "4.7.0")
        assert "accepted from trusted proxies only" in text
        await client.close()
    assert "refused 127.0.0.2: proxy_trust" in caplog.text


async def test_without_trusted_proxies_only_a_unix_socket_is_accepted(tmp_path: Any) -> None:
    listen = ["smtp+proxy:127.0.0.1:0", f"smtp+proxy:unix:{tmp_path}/sock"]
    async with proxied(listen=listen, proxy_trust=None) as server:
        client = await sent(server, V1)
        assert (await client.reply()).code == 421
        await client.close()
        async with await Client.to(server.addresses[1]) as inside:
            inside.send(V1)
            assert (await inside.greet()).code == 250


BAD = {
    "no header": b"EHLO x\r\n",
    "a web browser": b"GET / HTTP/1.1\r\n\r\n",
    "v1 too long": b"PROXY TCP4 " + b"1" * 200,
    "v1 too long, with an end": b"PROXY TCP4 " + b"1" * 200 + b"\r\n",
    "v1 of a wrong family": b"PROXY TCP4 2001:db8::7 2001:db8::1 4711 25\r\n",
    "v1 of no family": b"PROXY UDP4 192.0.2.7 198.51.100.1 4711 25\r\n",
    "v1 with too few fields": b"PROXY TCP4 192.0.2.7\r\n",
    "v1 with a bare LF": b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 25\n" + b"x" * 100,
    "v1 with a port that has an underscore": b"PROXY TCP4 192.0.2.7 198.51.100.1 4_7 25\r\n",
    "v1 with a port above 65535": b"PROXY TCP4 192.0.2.7 198.51.100.1 65536 25\r\n",
    "v1 with a port that begins with 0": b"PROXY TCP4 192.0.2.7 198.51.100.1 025 25\r\n",
    "v1 with another word": b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 25 x\r\n",
    "v1 with two spaces": b"PROXY TCP4  192.0.2.7 198.51.100.1 4711 25\r\n",
    "v1 of an interface": b"PROXY TCP6 fe80::1%lo 2001:db8::1 4711 25\r\n",
    "v1 of nearly a family": b"PROXY TCPX4 192.0.2.7 198.51.100.1 4711 25\r\n",
    "v1 of nearly unknown": b"PROXY UNKNOWNS\r\n",
    "v1 with no address": b"PROXY TCP4 1.2.3.4.5 198.51.100.1 4711 25\r\n",
    "v2 truncated inside": v2(1, 0x11, b"\1\2\3"),
    "v2 truncated inside, IPv6": v2(1, 0x21, inet("192.0.2.7")),
    "v2 truncated inside, datagrams": v2(1, 0x12, b"\1\2\3"),
    "v2 of no family": v2(1, 0x41, inet("192.0.2.7")),
    "v2 of no transport": v2(1, 0x13, inet("192.0.2.7")),
    "v2 of no version": SIGNATURE + b"\x31\x11\0\0",
    "v2 of no command": SIGNATURE + b"\x2f\x11\0\0",
    "v2 with another signature": SIGNATURE[:-1] + b"X" + b"\x21\x11\0\0",
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD.keys())
async def test_an_invalid_header_closes_the_connection_and_is_logged_in_one_line(
    data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with proxied() as server:
        caplog.clear()
        caplog.set_level("INFO", "smtpd_fork")
        client = await sent(server, data)
        assert await client.ended()
        assert server.gate.count == 0
        assert [message.partition(": ")[2][:15] for message in caplog.messages] == [
            "no PROXY header"
        ]
        await client.close()


async def test_the_client_of_a_unix_socket_has_no_address() -> None:
    handler = Notes()
    async with proxied(handler) as server:
        client = await sent(server, UNIX)
        assert (await client.greet()).code == 250
        assert (await client.deliver()).code == 250
        assert [session.peer for session in handler.sessions] == [""]
        await client.close()


@pytest.mark.parametrize("data", [b"", V1[:20], SIGNATURE[:7], V2[:-1]])
@pytest.mark.parametrize("end", ["late", "close", "reset", "half-close"])
async def test_a_connection_without_a_header_frees_its_slot(data: bytes, end: str) -> None:
    async with proxied(proxy_timeout=0.2 if end == "late" else 60.0) as server:
        client = await sent(server, data)
        await until(lambda: server.gate.count)
        assert [entry.phase for entry in server.gate.ledger()] == ["proxy-header"]
        if end == "reset":
            client.reset()
        elif end == "half-close":
            client.writer.write_eof()
        elif end == "close":
            await client.close()
        await until(lambda: not server.gate.count)
        await client.close()


async def test_a_stop_answers_421_to_clients_that_have_sent_no_header() -> None:
    async with proxied(proxy_timeout=60) as server:
        client = await sent(server, V1[:10])
        await until(lambda: server.gate.count)
        await server.stop()
        assert (await client.reply()).code == 421
        await client.close()


async def test_a_handler_may_refuse_a_header() -> None:
    class Picky(Discard):
        async def handle_PROXY(
            self, server: Any, session: Any, envelope: Any, proxy_data: Any
        ) -> bool:
            return str(proxy_data.src_addr) != "192.0.2.7"

    async with proxied(Picky()) as server:
        refused = await sent(server, V1)
        assert await refused.ended()
        taken = await sent(server, V1.replace(b"192.0.2.7", b"192.0.2.8"))
        assert (await taken.greet()).code == 250
        for client in (refused, taken):
            await client.close()


async def test_data_after_the_header_belongs_to_the_session() -> None:
    async with proxied(greet_pause=0.05) as server:
        client = await sent(server, V1)
        assert (await client.greet()).code == 250
        await client.close()
    async with proxied() as server:
        client = await sent(server, V2 + b"EHLO x\r\nNOOP\r\n")
        assert [(await client.reply()).code for _ in range(3)] == [220, 250, 250]
        await client.close()


# -- sans-io -------------------------------------------------------------------------------------


def read(header: bytes, data: bytes, size: Callable[[], int]) -> tuple[bytes, bytes]:
    """Read a header from *data* in packets; return it and the rest."""
    while not is_complete(header):
        peeked = data[: size()]
        if not peeked:
            raise HeaderError("ended")
        count = bytes_to_read(header, peeked)
        assert 0 < count <= len(peeked)
        header, data = header + data[:count], data[count:]
    return header, data


@given(
    header=st.sampled_from([header for header in GOOD.values() if len(header) < 1000]),
    behind=st.binary(max_size=20),
    packets=st.lists(st.integers(1, 30), min_size=1),
)
def test_the_end_of_a_header_is_found_in_packets_of_any_size(
    header: bytes, behind: bytes, packets: list[int]
) -> None:
    assert read(b"", header + behind, cycle(packets).__next__) == (header, behind)
    assert parse(header).valid


class Reader:
    """A complete header for aiosmtpd's parser."""

    def __init__(self, header: bytes) -> None:
        self._rest = header

    async def read(self, count: int = -1) -> bytes:
        taken, self._rest = self._rest[:count], self._rest[count:]
        return taken

    readexactly = read

    async def readuntil(self, separator: bytes = b"\n") -> bytes:
        return await self.read(self._rest.index(separator) + 1)


@pytest.mark.parametrize(
    "header", [*NAMES_A_CLIENT.values(), UNIX, LOCAL, UNKNOWN, NAMES_NOBODY["v2, no family, TLVs"]]
)
async def test_handlers_get_the_same_data_as_from_the_parser_of_aiosmtpd(header: bytes) -> None:
    ours, theirs = parse(header), await get_proxy(Reader(header))
    for name in (
        *("version", "command", "family", "protocol", "src_addr", "dst_addr", "src_port"),
        *("dst_port", "rest", "whole_raw", "tlv_start", "valid", "tlv"),
    ):
        # In aiosmtpd's data of version 1, whole_raw lacks a space.
        if not (header.startswith(b"PROXY") and name == "whole_raw"):
            assert getattr(ours, name) == getattr(theirs, name), name


@given(st.one_of(st.binary(max_size=60), st.binary(max_size=40).map(lambda b: SIGNATURE + b),
                 st.binary(max_size=40).map(lambda b: b"PROXY " + b + b"\r\n")))  # fmt: skip
def test_any_bytes_are_a_header_or_an_error(data: bytes) -> None:
    try:
        header, _ = read(b"", data, lambda: 7)
        assert parse(header).valid
    except HeaderError:
        pass
