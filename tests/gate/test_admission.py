"""Admission: clients that are admitted, deferred and refused, and their order."""

from __future__ import annotations

import asyncio
import re
import socket
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from support.client import Client
from support.server import serve, until

from smtpd_fork import Gate, Limits
from smtpd_fork.sinks import Discard

if TYPE_CHECKING:
    from support.tls import Certificates


async def test_defer_makes_a_client_wait_until_a_slot_is_free() -> None:
    async with serve(Discard(), limit_connections=1) as server:
        first = await Client.to(server.addresses[0])
        await first.greet()
        second = await Client.to(server.addresses[0])
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(
                asyncio.shield(asyncio.ensure_future(second.reader.read(1))), 0.1
            )
        assert server.gate.count == 1
        await first.close()
        await until(lambda: server.gate.count_from("127.0.0.1") == 1)
        third = await Client.to(server.addresses[0])
        await second.close()
        assert (await third.reply()).code == 220
        await third.close()


async def test_refuse_replies_at_once() -> None:
    async with serve(Discard(), limit_connections=1, when_full="refuse") as server:
        async with await Client.to(server.addresses[0]) as first:
            await first.greet()
            async with await Client.to(server.addresses[0]) as second:
                code, (text,) = await second.reply()
                says, _, name = text.partition(" [")
                assert code == 421
                assert says == "4.3.2 mx.example.com Too many connections, try again later"
                explanation = server.gate.explain(name.rstrip("]"))
                assert explanation is not None
                assert explanation.refusal.rule == "limit_connections"
                assert await second.ended()
        assert server.gate.count <= 1


async def test_defer_with_a_time_refuses_when_the_time_is_over() -> None:
    async with (
        serve(Discard(), limit_connections=1, when_full="defer:200ms") as server,
        await Client.to(server.addresses[0]) as first,
    ):
        await first.greet()
        loop = asyncio.get_running_loop()
        begun = loop.time()
        clients = [await Client.to(server.addresses[0]) for _ in range(5)]
        for client in clients:
            assert (await client.reply()).code == 421
            assert loop.time() - begun >= 0.19
            await client.close()
        assert server.gate.count == 1


async def test_defer_with_a_time_admits_the_client_that_has_waited_longest() -> None:
    async with serve(Discard(), limit_connections=1, when_full="defer:60") as server:
        first = await Client.to(server.addresses[0])
        await first.greet()
        clients = [first, *[await Client.to(server.addresses[0]) for _ in range(4)]]
        for before, client in pairwise(clients):
            await before.close()
            assert (await client.reply()).code == 220
        await clients[-1].close()


async def test_the_number_of_deferred_clients_is_bounded_and_the_others_stay_in_the_backlog() -> (
    None
):
    options = {"limit_connections": 1, "when_full": "defer:300ms", "backlog": 2}
    async with serve(Discard(), **options) as server:
        first = await Client.to(server.addresses[0])
        await first.greet()
        clients = [await Client.to(server.addresses[0]) for _ in range(4)]
        for client in clients:
            assert (await client.reply()).code == 421
            await client.close()
        await first.close()


async def test_a_client_over_its_limit_is_refused_with_its_address(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serve(Discard(), max_from_ip=1) as server:
        async with await Client.to(server.addresses[0]) as first:
            await first.greet()
            for _ in range(3):
                async with await Client.to(server.addresses[0]) as second:
                    code, (text,) = await second.reply()
                    says = "Too many connections from 127.0.0.1, try again later"
                    assert code == 421
                    assert text.startswith(f"4.7.0 mx.example.com {says} [")
            async with await Client.to(server.addresses[0], source="127.0.0.2") as other:
                assert (await other.greet()).code == 250
    lines = [r.getMessage() for r in caplog.records if r.name == "smtpd_fork.gate"]
    records = [r for r in caplog.records if r.name == "smtpd_fork.gate"]
    refusal = records[0].refusal  # type: ignore[attr-defined]  # what the gate adds to a record
    assert (refusal.rule, refusal.key) == ("max_from_ip", "127.0.0.1")
    assert (refusal.count, refusal.limit) == (2, 1)
    expected = r"refused 127\.0\.0\.1: max_from_ip \(2 > 1\) \[\w+-\w+\]"
    assert re.fullmatch(expected, lines[0])
    assert re.fullmatch(expected + r"; 2 more in \d s", lines[-1])
    assert len(lines) == 2


async def test_an_early_talker_gets_its_refusal_and_no_reset() -> None:
    async with serve(Discard(), max_from_ip=1) as server:
        async with await Client.to(server.addresses[0]) as first:
            await first.greet()
            with socket.socket() as talker:
                talker.setblocking(False)
                loop = asyncio.get_running_loop()
                await loop.sock_connect(talker, server.addresses[0])
                await loop.sock_sendall(talker, b"EHLO early\r\n")
                assert (await loop.sock_recv(talker, 4096)).startswith(b"421 4.7.0 ")


async def test_a_full_implicit_tls_port_closes_without_a_plaintext_reply(
    certificates: Certificates,
) -> None:
    options = {
        "listen": ["smtps:127.0.0.1:0"],
        "tls_context": certificates.server,
        "max_from_ip": 1,
    }
    async with serve(Discard(), **options) as server:
        async with await Client.to(server.addresses[0], tls=certificates.client) as first:
            await first.greet()
            async with await Client.to(server.addresses[0]) as second:
                assert await second.reader.read() == b""


async def test_every_listener_gets_slots_when_slots_are_short() -> None:
    """With one slot and waiting clients at all listeners, no listener gets all turns."""
    served: list[int] = []

    class Count(Discard):
        async def handle_CONNECT(self, server: Any, session: Any) -> str:
            served.append(session.local[1])
            return "421 4.3.2 Next, please"

    options = {"listen": ["127.0.0.1:0"] * 3, "limit_connections": 1}
    async with serve(Count(), **options) as server:
        server.gate.pause()
        clients = [await Client.to(address) for _ in range(10) for address in server.addresses]
        server.gate.resume()
        for client in clients:
            assert (await client.reply()).code == 421
            await client.close()
        first_round = served[:6]
        assert {first_round.count(listener.bound[1]) for listener in server.listeners} == {2}


async def test_a_paused_gate_defers_clients_and_serves_them_after_resume() -> None:
    async with serve(Discard()) as server:
        server.gate.pause()
        client = await Client.to(server.addresses[0])
        assert server.gate.count == 0
        server.gate.resume()
        assert (await client.greet()).code == 250
        await client.close()


async def test_a_raised_limit_admits_deferred_clients() -> None:
    async with serve(Discard(), limit_connections=1) as server:
        first = await Client.to(server.addresses[0])
        await first.greet()
        second = await Client.to(server.addresses[0])
        server.gate.limits = Limits(limit_connections=2)
        assert (await second.greet()).code == 250
        await first.close()
        await second.close()


async def test_two_servers_with_one_gate_share_its_slots() -> None:
    gate = Gate(limit_connections=1)
    async with serve(Discard(), gate=gate) as one, serve(Discard(), gate=gate) as other:
        first = await Client.to(one.addresses[0])
        await first.greet()
        second = await Client.to(other.addresses[0])
        assert other.sessions == 0
        await first.close()
        assert (await second.greet()).code == 250
        assert gate.count == 1
        await second.close()
