"""The greet pause: who talks before the greeting is no mail server."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from support.client import Client
from support.daemon import LOCAL, Daemon
from support.dialogue import connect
from support.server import serve, until

from smtpd_fork.sinks import Discard

if TYPE_CHECKING:
    from pathlib import Path

    from support.tls import Certificates


async def test_who_waits_for_the_greeting_is_served() -> None:
    async with serve(Discard(), greet_pause=0.2) as server:
        begun = asyncio.get_running_loop().time()
        async with await Client.to(server.addresses[0]) as client:
            assert (await client.greet()).code == 250
            assert asyncio.get_running_loop().time() - begun >= 0.2
            assert (await client.deliver()).code == 250


async def test_an_early_talker_is_told_554_and_gives_its_place_back() -> None:
    async with serve(Discard(), greet_pause=60) as server:
        async with await Client.to(server.addresses[0]) as client:
            client.send("EHLO spammer\r\n")
            code, (text,) = await client.reply()
            assert (code, text[:5]) == (554, "5.5.1")
            assert await client.ended()
        explained = server.gate.explain(text.rpartition("[")[2].rstrip("]"))
        assert explained is not None
        assert explained.refusal.rule == "greet_pause"
        assert "--greet-pause" in explained.cure
        assert server.gate.count == 0
        assert server.gate.stats()["refused_greet_pause"] == 1


@pytest.mark.parametrize("end", ["close", "reset", "half-close"])
async def test_who_goes_before_the_greeting_gives_its_place_back(end: str) -> None:
    async with serve(Discard(), greet_pause=60) as server:
        client = await Client.to(server.addresses[0])
        await until(lambda: server.gate.count == 1)
        assert [entry.phase for entry in server.gate.ledger()] == ["greet-pause"]
        assert server.sessions == 0
        if end == "reset":
            client.reset()
        elif end == "half-close":
            client.writer.write_eof()
        else:
            await client.close()
        await until(lambda: not server.gate.count)
        await client.close()


async def test_exempt_clients_and_those_of_a_tls_port_do_not_wait(
    certificates: Certificates,
) -> None:
    listen = ["127.0.0.1:0", "smtps:127.0.0.1:0"]
    options = {"listen": listen, "tls_context": certificates.server, "exempt": "127.0.0.9"}
    async with serve(Discard(), greet_pause=60, **options) as server:
        async with await Client.to(server.addresses[0], source="127.0.0.9") as relay:
            assert (await relay.greet()).code == 250
        async with await Client.to(server.addresses[1], tls=certificates.client) as encrypted:
            assert (await encrypted.greet()).code == 250


async def test_a_stop_answers_who_waits_for_the_greeting() -> None:
    async with serve(Discard(), greet_pause=60) as server:
        clients = [await Client.to(server.addresses[0]) for _ in range(3)]
        await until(lambda: server.gate.count == 3)
        await server.stop()
        for client in clients:
            assert (await client.reply()).code == 421
            assert await client.ended()
            await client.close()


async def test_a_thousand_early_talkers_and_a_thousand_who_go_leave_nothing() -> None:
    async def talker(number: int) -> None:
        client = await Client.to(server.addresses[0], source=f"127.0.1.{number % 250 + 1}")
        if number % 2:
            client.send("HELO x\r\n")
            assert (await client.reply()).code == 554
        await client.close()

    async with serve(Discard(), greet_pause=60, limit_connections=3000, backlog=4096) as server:
        for start in range(0, 2000, 200):
            await asyncio.gather(*(talker(start + number) for number in range(200)))
        await until(lambda: not server.gate.count)


def test_the_option_has_units_and_a_limit(tmp_path: Path) -> None:
    with Daemon(*LOCAL, "--greet-pause", "50ms", cwd=tmp_path) as daemon:
        with connect(("127.0.0.1", daemon.port)) as client:
            assert client.recv(4) == b"220 "
