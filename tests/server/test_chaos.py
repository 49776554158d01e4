"""Clients that reset, stall, half-close and disappear in each phase.

After any behaviour of clients, all counts of the gate are 0, the server has no tasks left, and it
serves the next client.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import pytest
from aiosmtpd.smtp import MISSING
from support.client import Client
from support.server import serve, until

from smtpd_fork.sinks import Discard

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable

    from support.tls import Certificates

    from smtpd_fork import Server

CLIENTS = 2500
AT_ONCE = 60
SEED = 20261122

PHASES = ("connect", "banner", "ehlo", "mail", "rcpt", "data", "dot", "starttls", "tls", "tls data")
ENDINGS = ("reset", "eof", "stall", "garbage", "vanish", "quit")


class Jumpy(Discard):
    """A handler that sometimes fails, or takes time."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.inside = 0

    async def handle_CONNECT(self, server: Any, session: Any) -> Any:
        self.inside += 1
        return MISSING

    async def handle_DISCONNECT(self, server: Any, session: Any) -> None:
        self.inside -= 1

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        roll = self.chance.random()
        if roll < 0.2:
            raise RuntimeError("chaos")
        if roll < 0.6:
            await asyncio.sleep(self.chance.random() / 50)
        return "250 2.0.0 Ok"


async def reach(client: Client, phase: str, tls: ssl.SSLContext) -> None:
    """Bring the session into *phase*."""
    if phase == "connect":
        return
    await client.reply()
    if phase == "banner":
        return
    await client.say("EHLO chaos")
    if phase in {"starttls", "tls", "tls data"}:
        await client.say("STARTTLS")
        if phase == "starttls":
            return
        await client.writer.start_tls(tls, server_hostname="localhost")
        await client.say("EHLO chaos")
        if phase == "tls":
            return
    for name, command in [("mail", "MAIL FROM:<a@b.c>"), ("rcpt", "RCPT TO:<d@e.f>")]:
        if phase == "ehlo":
            return
        await client.say(command)
        if phase == name:
            return
    await client.say("DATA")
    client.send("Subject: chaos\r\n\r\nhalf a line")
    if phase == "dot":
        client.send("\r\n.\r\n")


async def end(client: Client, ending: str) -> None:
    """End the connection in one of several ways, most of them abnormal."""
    if ending == "reset":
        client.reset()
    elif ending == "eof":
        if client.writer.can_write_eof():
            client.writer.write_eof()
        await client.ended()
    elif ending == "stall":
        await client.ended()  # the timeouts of the server end it
    elif ending == "garbage":
        client.send(bytes(range(256)) * 20)
        client.send(b"\r\n.\r\n" * 3)
        await client.ended()
    elif ending == "quit":
        client.send("\r\n.\r\nQUIT\r\n")
        await client.ended()


async def misbehave(address: Any, phase: str, ending: str, tls: ssl.SSLContext) -> None:
    try:
        client = await Client.to(address)
        try:
            await reach(client, phase, tls)
            await end(client, ending)
        finally:
            client.writer.transport.abort()
    except (OSError, RuntimeError):
        pass  # the server has closed before (uvloop raises a RuntimeError then)


async def chaos(
    server: Server, certificates: Certificates, clients: int, chance: random.Random
) -> None:
    """Run *clients* abnormal clients on every address, a limited number at a time."""
    places = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> None:
        phase, ending = chance.choice(PHASES), chance.choice(ENDINGS)
        address = server.addresses[number % len(server.addresses)]
        async with places:
            await misbehave(address, phase, ending, certificates.client)

    await asyncio.gather(*(one(number) for number in range(clients)))


async def zero(server: Server) -> None:
    await until(lambda: not server.gate.count and not server.sessions)


@pytest.mark.timeout(120)
async def test_after_thousands_of_bad_clients_every_count_is_zero(
    certificates: Certificates,
) -> None:
    chance = random.Random(SEED)
    handler = Jumpy(chance)
    options: dict[str, Any] = {
        "listen": ["127.0.0.1:0", "[::1]:0"],
        "tls_context": certificates.server,
        "timeout": 0.25,
        "data_timeout": 0.25,
        "tls_handshake_timeout": 0.25,
        "limit_connections": AT_ONCE // 2,
        "max_from_ip": AT_ONCE // 3,
    }
    before = len(asyncio.all_tasks())
    async with serve(handler, **options) as server:
        await chaos(server, certificates, CLIENTS, chance)
        await zero(server)
        async with await Client.to(server.addresses[0]) as client:
            await client.greet()
            assert (await client.say("NOOP")).code == 250
    assert handler.inside == 0
    await asyncio.sleep(0)
    assert len(asyncio.all_tasks()) == before


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("ending", ENDINGS)
async def test_a_client_that_leaves_in_any_phase_frees_its_slot(
    phase: str, ending: str, certificates: Certificates
) -> None:
    options: dict[str, Any] = {
        "tls_context": certificates.server,
        "timeout": 0.1,
        "data_timeout": 0.1,
        "tls_handshake_timeout": 0.1,
    }
    async with serve(Discard(), **options) as server:
        await misbehave(server.addresses[0], phase, ending, certificates.client)
        await zero(server)


@pytest.mark.parametrize(
    "leave",
    [
        lambda client: client.reset(),
        lambda client: client.send(b"\x16\x03\x01garbage" * 100),
        lambda client: client.writer.write_eof(),
        lambda _: None,
    ],
    ids=["reset", "garbage", "eof", "stall"],
)
async def test_a_client_that_leaves_during_an_implicit_tls_handshake_frees_its_slot(
    leave: Callable[[Client], Awaitable[None] | None], certificates: Certificates
) -> None:
    options: dict[str, Any] = {
        "listen": ["smtps:127.0.0.1:0"],
        "tls_context": certificates.server,
        "tls_handshake_timeout": 0.1,
    }
    async with serve(Discard(), **options) as server:
        for _ in range(20):
            client = await Client.to(server.addresses[0])
            leave(client)
            await client.ended()
            await client.close()
        await zero(server)


async def test_after_a_stop_under_load_every_count_is_zero(certificates: Certificates) -> None:
    chance = random.Random(SEED)
    options: dict[str, Any] = {
        "tls_context": certificates.server,
        "timeout": 1,
        "data_timeout": 1,
        "shutdown_timeout": 0.2,
    }
    async with serve(Jumpy(chance), **options) as server:
        storm = asyncio.ensure_future(chaos(server, certificates, 300, chance))
        await until(lambda: server.gate.count >= 20)
        await server.stop()
        assert server.gate.count == 0
        await storm
