"""A thousand clients at once: limits are not exceeded, and each deferred client is served."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support.client import Client, Reply
from support.server import serve

from smtpd_fork import Gate, Ticket
from smtpd_fork.sinks import Discard

CLIENTS = 1000
SOURCES = 10
LIMIT, PER_IP = 100, 10


class Watched(Gate):
    """A gate that records its highest counts."""

    def __init__(self, **limits: Any) -> None:
        super().__init__(**limits)
        self.highest = 0
        self.highest_from: dict[str, int] = {}

    def admit(self, peer: Any, **more: Any) -> Any:
        verdict = super().admit(peer, **more)
        self.highest = max(self.highest, self.count)
        if isinstance(verdict, Ticket):
            host = str(verdict.key)
            now = self.count_from(host)
            self.highest_from[host] = max(self.highest_from.get(host, 0), now)
        return verdict


async def one_client(address: Any, source: str, gate: Gate) -> Reply:
    """Connect, have a session if admitted, and disconnect."""
    async with await Client.to(address, source=source) as client:
        banner = await client.reply()
        if banner.code != 220:
            assert await client.ended()
            return banner
        assert (await client.say("EHLO x")).code == 250
        assert (await client.deliver()).code == 250
        assert (await client.say("QUIT")).code == 221
        return banner


@pytest.mark.parametrize("listeners", [1, 3])
async def test_all_deferred_clients_are_served_and_no_limit_is_exceeded(listeners: int) -> None:
    gate = Watched(limit_connections=LIMIT, max_from_ip=0)
    options = {"gate": gate, "listen": ["127.0.0.1:0"] * listeners, "backlog": 4096}
    async with serve(Discard(), **options) as server:
        replies = await asyncio.gather(
            *(
                one_client(server.addresses[n % listeners], f"127.0.0.{n % SOURCES + 1}", gate)
                for n in range(CLIENTS)
            )
        )
    assert [reply.code for reply in replies] == [220] * CLIENTS
    assert gate.highest == LIMIT


@pytest.mark.parametrize("when_full", ["defer", "refuse", "defer:60"])
async def test_a_thousand_clients_of_ten_addresses_exceed_neither_limit(
    when_full: str,
) -> None:
    gate = Watched(limit_connections=LIMIT, max_from_ip=PER_IP)
    options = {"gate": gate, "when_full": when_full, "backlog": 4096}
    async with serve(Discard(), **options) as server:
        replies = await asyncio.gather(
            *(
                # 14 addresses, so that both limits are hit
                one_client(server.addresses[0], f"127.0.0.{n % 14 + 1}", gate)
                for n in range(CLIENTS)
            )
        )
    codes = [reply.code for reply in replies]
    assert set(codes) <= {220, 421}
    assert codes.count(220) >= PER_IP
    assert gate.highest <= LIMIT
    assert max(gate.highest_from.values()) <= PER_IP
    refused = {reply.text[:5] for reply in replies if reply.code == 421}
    if when_full != "refuse":
        assert refused <= {"4.7.0"}  # no client was refused because the gate was full


async def test_a_client_refused_by_the_limit_of_its_address_is_served_later() -> None:
    gate = Watched(limit_connections=LIMIT, max_from_ip=PER_IP)

    async def stubborn(address: Any, source: str) -> int:
        tries = 0
        while True:
            tries += 1
            if (await one_client(address, source, gate)).code == 220:
                return tries
            await asyncio.sleep(0.02)

    async with serve(Discard(), gate=gate) as server:
        tries = await asyncio.gather(
            *(stubborn(server.addresses[0], f"127.0.0.{n % 5 + 1}") for n in range(200))
        )
    assert sum(tries) > 200
    assert max(gate.highest_from.values()) == PER_IP
