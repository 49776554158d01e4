"""TLS handshakes that fail or do not end are limited by client and by network."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from support.client import Client
from support.gates import Clock, new_gate, refusal
from support.server import serve, until

from smtpd_fork import Gate, Ticket
from smtpd_fork.sinks import Discard
from smtpd_fork.smtp.starttls import _start

if TYPE_CHECKING:
    from collections.abc import Iterable

    from support.tls import Certificates

    from smtpd_fork import Server

OTHER = "127.0.0.9"


def attempt(gate: Gate, host: str, *, succeeds: bool = False) -> bool:
    """Begin a handshake as *host*; return whether it is allowed."""
    with gate.admit(host) as ticket:  # type: ignore[union-attr]
        assert isinstance(ticket, Ticket)
        if gate.begin_handshake(ticket) is not None:
            return False
        if succeeds:
            gate.end_handshake(ticket)
        return True


def failures(gate: Gate, hosts: Iterable[str]) -> int:
    """Fail handshakes as *hosts* until one is refused; return the number of failures."""
    count = 0
    for host in hosts:
        if not attempt(gate, host):
            break
        count += 1
    return count


@pytest.mark.parametrize(
    ("hosts", "key", "most"),
    [
        (["192.0.2.1"], "192.0.2.1", 300),
        (["2001:db8::1", "2001:db8::2"], "2001:db8::/64", 300),
        ([f"192.0.2.{n}" for n in range(200)], "192.0.2.0/24", 1200),
        ([f"2001:db8:1:{n:x}::1" for n in range(1000)], "2001:db8:1::/48", 1200),
    ],
)
def test_by_default_a_client_may_fail_300_times_a_minute_and_a_network_1200_times(
    hosts: list[str], key: str, most: int
) -> None:
    clock = Clock()
    gate = new_gate(clock)
    assert failures(gate, hosts * 1500) == most
    ticket = gate.admit(hosts[0])
    assert isinstance(ticket, Ticket)
    found = gate.begin_handshake(ticket)
    assert refusal(found) == ("tls_failure_rate", key, most + 1, most)
    assert attempt(gate, "198.51.100.1")
    clock.now += 60 / most + 0.001
    assert gate.begin_handshake(ticket) is None
    assert gate.begin_handshake(ticket) is not None


@pytest.mark.parametrize(
    ("options", "host", "most"),
    [
        ({"tls_failure_rate": "0"}, "192.0.2.1", None),
        ({"tls_failure_rate": "7/h"}, "192.0.2.1", 7),
        ({"exempt": "192.0.2.0/24"}, "192.0.2.1", None),
        ({}, "", None),  # a client of a unix socket has no address
    ],
)
def test_the_limit_can_be_set_and_does_not_apply_to_exempt_clients(
    options: dict[str, Any], host: str, most: int | None
) -> None:
    assert failures(new_gate(Clock(), **options), [host] * 2000) == (most or 2000)


def test_a_client_whose_handshakes_succeed_is_never_refused() -> None:
    gate = new_gate(Clock())
    assert all(attempt(gate, "192.0.2.1", succeeds=True) for _ in range(5000))
    assert failures(gate, ["192.0.2.1"] * 1000) == 300


def test_handshakes_in_progress_are_counted() -> None:
    gate = new_gate(Clock(), max_from_ip=0, tls_failure_rate="3/m")
    tickets = [gate.admit("192.0.2.1") for _ in range(4)]
    verdicts = [gate.begin_handshake(ticket) for ticket in tickets]  # type: ignore[arg-type]
    assert [verdict is None for verdict in verdicts] == [True] * 3 + [False]
    gate.end_handshake(tickets[0])  # type: ignore[arg-type]
    assert gate.begin_handshake(tickets[3]) is None  # type: ignore[arg-type]


def test_clients_of_a_local_network_do_not_share_a_limit() -> None:
    """A local network may have a bridge or a proxy, which many clients share."""
    hosts = [f"10.0.0.{n}" for n in range(200)]
    assert failures(new_gate(Clock()), hosts * 10) == 2000


# -- with real connections -------------------------------------------------------------------------


def client_hello() -> bytes:
    """Return the first bytes of a real TLS client."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    connection = ssl.create_default_context().wrap_bio(
        incoming, outgoing, server_hostname="localhost"
    )
    with pytest.raises(ssl.SSLWantReadError):
        connection.do_handshake()
    return outgoing.read()


async def half_a_handshake(server: Server, *, starttls: bool) -> None:
    """Make the server begin its part of a handshake, and disconnect."""
    failed = server.tally.tls_failed
    client = await Client.to(server.addresses[0])
    if starttls:
        await client.greet()
        assert (await client.say("STARTTLS")).code == 220
    client.send(client_hello())
    await client.reader.readexactly(5)  # a certificate, and a signature that cost CPU time
    client.reset()
    await until(lambda: server.tally.tls_failed == failed + 1)


async def test_starttls_is_refused_and_the_session_continues_without_it(
    certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    options: dict[str, Any] = {"tls_failure_rate": "3/h", "tls_context": certificates.server}
    async with serve(Discard(), **options) as server:
        for _ in range(3):
            await half_a_handshake(server, starttls=True)
        async with await Client.to(server.addresses[0]) as client:
            await client.greet()
            for _ in range(5):
                reply = await client.say("STARTTLS")
                assert reply.code == 454
                assert reply.text.startswith(
                    "4.7.0 Too many failed TLS handshakes from 127.0.0.1, try again later ["
                )
            assert (await client.deliver()).code == 250
        explained = server.gate.explain(reply.text.rpartition("[")[2].rstrip("]"))
        assert explained is not None
        assert "--tls-failure-rate" in explained.cure
        assert server.gate.stats()["refused_tls_failure_rate"] == 5
        async with await Client.to(server.addresses[0], source=OTHER) as client:
            await client.greet()
            await client.start_tls(certificates.client)
            await client.say("EHLO x")
            assert (await client.deliver()).code == 250
    lines = [line for line in caplog.messages if "tls_failure_rate" in line]
    assert [re.sub(r"session \S+ \[.*\]", "session SESSION [ID]", line) for line in lines][:1] == [
        "refused 127.0.0.1: tls_failure_rate (4 > 3), session SESSION [ID]"
    ]
    assert len(lines) == 2
    assert "; 4 more in " in lines[1]


async def test_repeated_starttls_ends_the_session(certificates: Certificates) -> None:
    options: dict[str, Any] = {"tls_failure_rate": "1/h", "tls_context": certificates.server}
    async with serve(Discard(), max_errors=3, **options) as server:
        await half_a_handshake(server, starttls=True)
        async with await Client.to(server.addresses[0]) as client:
            await client.greet()
            codes = [(await client.say("STARTTLS")).code for _ in range(4)]
            assert codes == [454, 454, 454, 421]


async def test_implicit_tls_is_closed_before_the_handshake(certificates: Certificates) -> None:
    options: dict[str, Any] = {"tls_failure_rate": "3/h", "tls_context": certificates.server}
    async with serve(Discard(), listen=["smtps:127.0.0.1:0"], **options) as server:
        for _ in range(3):
            await half_a_handshake(server, starttls=False)
        client = await Client.to(server.addresses[0])
        client.send(client_hello())
        assert await client.ended()
        await client.close()
        await until(lambda: server.gate.stats().get("refused_tls_failure_rate"))
        assert server.tally.tls_failed == 3
        async with await Client.to(
            server.addresses[0], source=OTHER, tls=certificates.client
        ) as client:
            await client.greet()
            assert (await client.deliver()).code == 250


async def test_a_client_whose_handshakes_succeed_is_always_served(
    certificates: Certificates,
) -> None:
    options: dict[str, Any] = {"tls_failure_rate": "2/h", "tls_context": certificates.server}
    listen = ["smtps:127.0.0.1:0", "127.0.0.1:0"]
    async with serve(Discard(), listen=listen, **options) as server:
        for _ in range(5):
            async with await Client.to(server.addresses[0], tls=certificates.client) as client:
                await client.greet()
            async with await Client.to(server.addresses[1]) as client:
                await client.greet()
                await client.start_tls(certificates.client)
                assert (await client.say("EHLO x")).code == 250
        assert server.gate.stats()["refused"] == 0


async def test_behind_a_proxy_failures_are_counted_for_the_client(
    certificates: Certificates,
) -> None:
    options: dict[str, Any] = {"tls_failure_rate": "2/h", "tls_context": certificates.server}
    listen = ["smtps+proxy:127.0.0.1:0"]
    async with serve(Discard(), listen=listen, proxy_trust="127.0.0.1", **options) as server:
        for host, ends in [("192.0.2.1", False)] * 2 + [("192.0.2.1", True), ("192.0.2.2", False)]:
            client = await Client.to(server.addresses[0])
            client.send(f"PROXY TCP4 {host} 127.0.0.1 1000 25\r\n".encode() + client_hello())
            async with asyncio.timeout(10):
                assert (await client.reader.read(5) == b"") is ends
            client.reset()
            await until(lambda: not server.gate.count)


async def test_no_tls_layer_is_created_for_a_closed_connection(
    certificates: Certificates,
) -> None:
    """asyncio's TLS layer would not notice the end, and warn when it is freed."""
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    with closing(theirs):
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
        transport.abort()
        await asyncio.sleep(0)
        with pytest.raises(ConnectionResetError):
            await _start(loop, transport, asyncio.BufferedProtocol(), certificates.server, 1.0)
