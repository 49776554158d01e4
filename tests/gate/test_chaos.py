"""Hostile clients of every kind at every stage of the gate: no count and no task remains."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from contextlib import suppress
from typing import Any

import pytest
from support.client import Client
from support.nameserver import name_server
from support.server import serve, until

from smtpd_fork.sinks import Discard

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
CLIENTS = 400


def header(host: str) -> bytes:
    """Return a PROXY header (v2) that names *host*."""
    family, bits = (socket.AF_INET6, 0x21) if ":" in host else (socket.AF_INET, 0x11)
    address = socket.inet_pton(family, host)
    body = address + address + struct.pack("!HH", 4711, 25)
    return SIGNATURE + bytes([0x21, bits]) + struct.pack("!H", len(body)) + body


async def bad_client(address: Any, packets: list[bytes], *, pause: float, end: str) -> None:
    """Connect, send something, perhaps read, and disconnect."""
    loop = asyncio.get_running_loop()
    with socket.socket() as sock, suppress(OSError, TimeoutError):
        sock.setblocking(False)
        await loop.sock_connect(sock, address[:2])
        for packet in packets:
            await loop.sock_sendall(sock, packet)
            await asyncio.sleep(pause)
        if end == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif end == "listen":
            async with asyncio.timeout(2):
                await loop.sock_recv(sock, 1000)


async def test_ipv6_clients_are_counted_by_their_networks() -> None:
    options: dict[str, Any] = {
        "listen": ["smtp+proxy:127.0.0.1:0"], "proxy_trust": "127.0.0.1", "max_from_ip": 2,
        "max_from_net": "30/48", "limit_connections": 500, "backlog": 500,
    }  # fmt: skip
    async with serve(Discard(), **options) as server:

        async def one(number: int) -> tuple[Client, int]:
            client = await Client.to(server.addresses[0])
            client.send(header(f"2001:db8:{number % 2}:{number % 40:x}::{number:x}"))
            return client, (await client.reply()).code

        clients = await asyncio.gather(*(one(number) for number in range(200)))
        codes = [code for _, code in clients]
        # 40 networks of /64, of which 20 lie in each /48: 2 of each could come, and 30 of all 20.
        assert (codes.count(220), codes.count(421)) == (60, 140)
        assert set(server.gate.clients.values()) <= {1, 2}
        assert sum(server.gate.clients.values()) == 60
        assert server.audit() == []
        for client, _ in clients:
            await client.close()
        await until(lambda: not server.gate.count)


async def test_garbage_after_a_proxy_header_ends_the_session() -> None:
    options = {"listen": ["smtp+proxy:127.0.0.1:0"], "proxy_trust": "127.0.0.1", "max_errors": 5}
    async with serve(Discard(), **options) as server:
        chance = random.Random(1)
        garbage = b"".join(chance.randbytes(50) + b"\r\n" for _ in range(100))
        client = await Client.to(server.addresses[0])
        client.send(header("192.0.2.7") + garbage)
        codes = []
        while (code := (await client.reply()).code) != 0:
            codes.append(code)
        assert codes[0] == 220
        assert codes[-1] == 421
        await client.close()
        await until(lambda: not server.gate.count)


@pytest.mark.parametrize("when_full", ["defer", "refuse"])
async def test_after_hundreds_of_bad_clients_at_every_stage_every_count_is_zero(
    when_full: str,
) -> None:
    chance = random.Random(20261122)
    async with name_server() as names:
        options: dict[str, Any] = {
            "listen": ["smtp+proxy:127.0.0.1:0", "127.0.0.1:0"], "proxy_trust": "127.0.0.1",
            "proxy_timeout": 0.3, "greet_pause": 0.05, "rdns": True, "dnsbl": "bl.example",
            "dns_timeout": 1.5, "dns_server": names.address, "limit_connections": 40,
            "max_from_ip": 5, "max_from_net": "20/24", "rate": "500/s", "fair_share": True,
            "reserve": 2, "exempt": "192.0.2.200", "deny": "203.0.113.0/24", "timeout": 0.5,
            "max_loop_lag": "5s", "when_full": when_full,
        }  # fmt: skip
        for number in range(0, 256, 3):
            names.records[f"{number}.2.0.192.bl.example", "A"] = chance.choice(
                [None, "SERVFAIL", "127.0.0.2", "nonsense"]
            )
        async with serve(Discard(), **options) as server:

            async def one(number: int) -> None:
                host = chance.choice([f"192.0.2.{number % 256}", "203.0.113.5", "192.0.2.200"])
                proxied = chance.random() < 0.8
                said = header(host) if proxied else b""
                said = chance.choice([said, said, said, said[:9], b"garbage\r\n", said + b"EHLO"])
                await asyncio.sleep(chance.random())
                await bad_client(
                    server.addresses[0 if proxied else 1],
                    [said, chance.choice([b"", b"QUIT\r\n", b"EHLO x\r\nNOOP\r\n"])],
                    pause=chance.choice([0, 0.01, 0.06, 0.2]),
                    end=chance.choice(["reset", "close", "listen"]),
                )

            clients = asyncio.gather(*(one(number) for number in range(CLIENTS)))
            while not clients.done():
                assert server.audit() == []
                assert server.gate.count <= 40
                await asyncio.sleep(0.02)
            await clients
            await until(lambda: not server.gate.count)
            assert server.gate.ledger() == []
            stats = server.gate.stats()
            assert stats["admitted"] > CLIENTS / 4
            assert {"refused_deny", "refused_dnsbl", "refused_greet_pause"} <= stats.keys()
