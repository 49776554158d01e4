"""The tarpit of a server: which clients are slowed down, how many, and the cost of a session."""

from __future__ import annotations

import asyncio
import resource
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from aiosmtpd.smtp import MISSING
from support.client import Client
from support.nameserver import name_server
from support.server import running, serve, until

from smtpd_fork.sinks import Discard

if TYPE_CHECKING:
    from support.tls import Certificates

    from smtpd_fork import Server

SOON = {"timeout": 0.4, "stress_timeout": 0}
"""With these settings deadlines are checked every 20 ms."""


class Slow(Discard):
    """A handler that slows down each client."""

    def __init__(self, seconds: float = 0.05) -> None:
        self.seconds = seconds

    async def handle_CONNECT(self, server: Any, session: Any) -> Any:
        session.tarpit = self.seconds
        return MISSING


def phases(server: Server) -> list[str]:
    return [entry.phase for entry in server.gate.ledger()]


def waiting(server: Server) -> int:
    return running(server)._tarpit.waiting


@pytest.mark.parametrize("tls", [False, True])
async def test_a_message_from_a_delayed_client_is_delivered(
    tls: bool, certificates: Certificates
) -> None:
    options: dict[str, Any] = dict(SOON)
    if tls:
        options |= {"tls_cert": str(certificates.cert), "tls_key": str(certificates.key)}
    async with serve(Slow(), **options) as server, await Client.to(server.addresses[0]) as client:
        await client.greet()
        if tls:
            await client.start_tls(certificates.client)
            await client.say("EHLO x")
        client.send("MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n")
        await until(lambda: phases(server) == ["tarpit"])
        assert [(await client.reply()).code for _ in range(3)] == [250, 250, 354]
        client.send("x\r\n.\r\n")
        assert (await client.reply()).code == 250
        assert (await client.say("QUIT")).code == 221


async def test_a_thousand_delayed_sessions_need_no_tasks() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    options = {"limit_connections": 10_000, "max_from_ip": 0, "max_from_net": "0"}
    try:
        async with serve(Slow(60.0), **options, **SOON) as server:
            before = len(asyncio.all_tasks())
            clients = [await Client.to(server.addresses[0]) for _ in range(1000)]
            await until(lambda: phases(server) == ["tarpit"] * 1000)
            assert waiting(server) == 1000
            assert len(asyncio.all_tasks()) <= before + 1  # the task of the deadlines
            for client in clients[:500]:
                client.writer.transport.abort()
            await until(lambda: waiting(server) == 500)
            await server.stop()  # the others get their reply and 421 immediately
            for client in clients[500:]:
                assert [(await client.reply()).code for _ in range(2)] == [220, 421]
            for client in clients:
                client.writer.transport.abort()
            assert waiting(server) == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_at_most_a_tenth_of_the_slots_are_delayed() -> None:
    async with serve(Slow(60.0), limit_connections=40, max_from_net="0", timeout=10) as server:
        clients = [await Client.to(server.addresses[0]) for _ in range(10)]
        for client in clients[4:]:
            assert (await client.reply()).code == 220
        assert waiting(server) == 4
        for client in clients:
            client.writer.transport.abort()
        await until(lambda: server.gate.count == 0)
        assert waiting(server) == 0


async def test_no_client_is_delayed_while_few_slots_are_free() -> None:
    slow = Slow(0)
    async with serve(slow, limit_connections=40, max_from_net="0", timeout=10) as server:
        clients = [await Client.to(server.addresses[0]) for _ in range(31)]
        slow.seconds = 60.0
        async with await Client.to(server.addresses[0]) as client:
            assert (await client.reply()).code == 220
            assert waiting(server) == 0
        for client in clients[:10]:
            client.writer.transport.abort()
        await until(lambda: server.gate.count == 21)
        async with await Client.to(server.addresses[0]):
            await until(lambda: waiting(server) == 1)
        for client in clients:
            client.writer.transport.abort()


async def test_a_delay_ends_when_few_slots_are_free() -> None:
    slow = Slow(60.0)
    options: dict[str, Any] = {"limit_connections": 40, "max_from_net": "0", "stress_timeout": 0}
    async with serve(slow, timeout=2, **options) as server:
        async with await Client.to(server.addresses[0]) as client:
            await until(lambda: waiting(server) == 1)
            slow.seconds = 0.0
            others = [await Client.to(server.addresses[0]) for _ in range(30)]
            assert (await client.reply()).code == 220
            assert waiting(server) == 0
        for other in others:
            other.writer.transport.abort()


async def test_a_client_near_its_limit_is_slowed_down_unless_it_is_exempt(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    options = {"max_from_ip": 8, "tarpit": "60s", "limit_connections": 100, "max_from_net": "0"}
    for exempt in ((), ("127.0.0.1",)):
        async with serve(Discard(), **options, exempt=exempt) as server:
            clients = [await Client.to(server.addresses[0]) for _ in range(7)]
            for client in clients[: 7 if exempt else 6]:
                assert (await client.reply()).code == 220
            assert waiting(server) == (0 if exempt else 1)
            for client in clients:
                client.writer.transport.abort()
    assert "replies are delayed by 60 s: 7 of 8 connections of 127.0.0.1" in caplog.text


async def test_a_client_on_a_blocklist_below_the_threshold_is_slowed_down() -> None:
    async with name_server() as dns:
        dns.records["1.0.0.127.bl.example", "A"] = "127.0.0.4"
        lists = {"dnsbl": ["bl.example"], "dnsbl_threshold": 2, "dns_server": dns.address}
        async with serve(Discard(), tarpit="60s", **lists) as server:
            async with await Client.to(server.addresses[0]):
                await until(lambda: phases(server) == ["tarpit"])
            dns.records.clear()


async def test_an_exempt_client_is_not_slowed_down_for_errors() -> None:
    async with serve(Discard(), tarpit="60s", exempt="127.0.0.1") as server:
        async with await Client.to(server.addresses[0]) as client:
            await client.greet()
            for _ in range(15):
                assert (await client.say("WHAT")).code == 500


async def test_a_reload_changes_the_delay() -> None:
    async with serve(Discard(), tarpit="60s") as server:
        lines = await server.reload(msgspec.structs.replace(server.config, tarpit=0.0))
        assert lines == ["tarpit 60 -> 0"]
        async with await Client.to(server.addresses[0]) as client:
            await client.greet()
            for _ in range(15):
                assert (await client.say("WHAT")).code == 500
