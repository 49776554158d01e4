"""Stress: idle clients in the connection slots do not exclude others."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
from support.auth import check
from support.client import MAIL, RCPT, Client, code_and_enhanced
from support.gates import new_gate
from support.handlers import Collect
from support.server import serve, until

from smtpd_fork import Config
from smtpd_fork.sinks import Discard

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from support.tls import Certificates

    from smtpd_fork import Server

SLOTS = 12
SHORT = 0.3
"""The --stress-timeout of these tests; all other timeouts are minutes."""

TRANSACTION = f"EHLO x\r\n{MAIL}\r\n{RCPT}\r\n"

WAYS: dict[str, tuple[str, str]] = {
    "say nothing": ("", ""),
    "say NOOP": ("", "NOOP\r\n"),
    "say EHLO": ("", "EHLO x\r\n"),
    "begin transactions": ("EHLO x\r\n", f"{MAIL}\r\n{RCPT}\r\nRSET\r\n"),
    "name recipients": (TRANSACTION, f"{RCPT}\r\n"),
    "drip a command": ("NOOP ", "o"),
    "drip an answer": ("EHLO x\r\nAUTH LOGIN\r\n", "Y"),
    "begin TLS": ("EHLO x\r\nSTARTTLS\r\n", ""),
    "stop in a message": (f"{TRANSACTION}DATA\r\nhello", ""),
    "stop in a chunk": (f"{TRANSACTION}BDAT 1000\r\nhello", ""),
    "stop between chunks": (f"{TRANSACTION}BDAT 5\r\nhello", "NOOP\r\n"),
}
"""Ways to hold a slot: the bytes sent first, and those sent repeatedly."""


async def attack(server: Server, number: int, way: str) -> None:
    """Hold a slot until the session is ended, and connect again."""
    while True:
        with suppress(OSError):
            client = await Client.to(server.addresses[0], source=f"127.0.{number}.1")
            try:
                await hold(client, way)
            finally:
                client.reset()
        await asyncio.sleep(0.05)  # as often as the other client: of a flood each gets a share


async def hold(client: Client, way: str) -> None:
    begin, again = WAYS[way]
    end = asyncio.ensure_future(client.ended())
    try:
        client.send(begin)
        while not end.done():
            await asyncio.wait([end], timeout=0.05)
            client.send(again)
    finally:
        end.cancel()


@asynccontextmanager
async def attacked(way: str, **options: Any) -> AsyncIterator[Server]:
    """Serve, with attackers in all slots, and as many waiting."""
    options = {"stress_timeout": SHORT, "limit_connections": SLOTS, "max_errors": 10_000, **options}
    options.setdefault("session_options", {"authenticator": check, "auth_require_tls": False})
    async with serve(Collect(), **options) as server:
        attackers = [asyncio.create_task(attack(server, n, way)) for n in range(2 * SLOTS)]
        try:
            await until(lambda: server.gate.slots.crowded)
            yield server
        finally:
            for attacker in attackers:
                attacker.cancel()
            await asyncio.wait(attackers)


async def delivers(server: Server, *, tls: Any = None) -> None:
    """Connect, repeatedly if refused, and deliver a message."""
    while True:
        async with await Client.to(server.addresses[0], source="127.0.200.1", tls=tls) as client:
            if (await client.reply()).code == 220:
                assert (await client.say("EHLO x")).code == 250
                assert (await client.deliver()).code == 250
                return
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("way", WAYS)
async def test_attackers_in_every_slot_do_not_exclude_a_client(
    way: str, certificates: Certificates
) -> None:
    tls = certificates.server
    async with attacked(way, tls_context=tls) as server, asyncio.timeout(10):
        await delivers(server)


@pytest.mark.parametrize("when_full", ["refuse", "defer:5"])
async def test_attackers_do_not_exclude_a_client_if_clients_are_refused(when_full: str) -> None:
    async with attacked("say NOOP", when_full=when_full) as server, asyncio.timeout(10):
        await delivers(server)


async def test_attackers_do_not_exclude_a_client_if_slots_are_reserved() -> None:
    options = {"exempt": "127.0.99.0/24", "reserve": 2}
    async with attacked("say NOOP", **options) as server, asyncio.timeout(10):
        await delivers(server)


async def test_incomplete_handshakes_have_less_time_under_stress(
    certificates: Certificates,
) -> None:
    options = {"tls_context": certificates.server, "listen": ["smtps:127.0.0.1:0"]}
    async with attacked("say nothing", session_options={}, **options) as server:
        async with asyncio.timeout(10):
            await delivers(server, tls=certificates.client)


@asynccontextmanager
async def full(handler: Any, **options: Any) -> AsyncIterator[tuple[Server, list[Client]]]:
    """Serve, with four slots in use by clients that have sent EHLO."""
    options = {"stress_timeout": SHORT, "limit_connections": 4, **options}
    async with serve(handler, **options) as server, AsyncExitStack() as stack:
        clients = []
        for number in range(4):
            client = await Client.to(server.addresses[0], source=f"127.0.0.{number + 1}")
            clients.append(await stack.enter_async_context(client))
            await client.greet()
        yield server, clients


async def keep_sending(clients: list[Client]) -> None:
    while True:
        for client in clients:
            client.send("NOOP\r\n")
        await asyncio.sleep(0.05)


async def test_no_session_with_a_message_in_progress_is_ended() -> None:
    finish = asyncio.Event()

    class Slow(Discard):
        async def handle_DATA(self, *_: Any) -> str:
            await finish.wait()
            return "250 2.0.0 Ok"

    async with full(Slow(), stress_timeout=1) as (server, clients):
        for client in clients:
            assert (await client.say(MAIL, RCPT, "DATA")).code == 354
            client.send("Subject: x\r\n")
        for client in clients[2:]:
            client.send(".\r\n")  # a handler works for these
        async with await Client.to(server.addresses[0]) as waiting:
            for _ in range(8):
                await asyncio.sleep(0.2)
                for client in clients[:2]:
                    client.send("x")
            for client in clients[:2]:
                client.send("\r\n.\r\n")
            finish.set()
            assert [(await client.reply()).code for client in clients] == [250] * 4
            assert (await waiting.reply()).code == 220


async def test_sessions_that_deliver_are_not_ended_while_others_wait() -> None:
    async with full(Discard(), stress_timeout=1.0) as (server, clients):

        async def deliver(client: Client) -> int:
            for _ in range(20):
                if (await client.deliver()).code != 250:
                    return 0
                await asyncio.sleep(0.1)
            return 250

        async with await Client.to(server.addresses[0]) as waiting:
            codes = await asyncio.gather(*(deliver(client) for client in clients))
            assert codes == [250] * 4
            for client in clients:
                assert (await client.say("QUIT")).code == 221
            assert (await waiting.reply()).code == 220


async def test_the_longest_idle_session_is_ended_first_and_one_for_each_waiting_client(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    async with full(Discard(), max_errors=10_000, stress_timeout=1) as (server, clients):
        busy = asyncio.create_task(keep_sending(clients))
        await asyncio.sleep(0.3)
        clients[0].send(f"{MAIL}\r\n")  # the oldest session is not idle any more
        async with await Client.to(server.addresses[0], source="127.0.0.9") as waiting:
            assert (await waiting.reply()).code == 220
            assert server.gate.stats()["refused_stress"] == 1
            busy.cancel()
    lines = [line for line in caplog.messages if "stress" in line]
    assert lines[0] == "stress: 4 of 4 slots are in use, idle clients are ended after 1 s"
    assert lines[1].startswith("refused 127.0.0."), lines
    assert not lines[1].startswith("refused 127.0.0.1:"), lines
    assert any(line.endswith(" s without progress") for line in caplog.messages)


async def test_an_ended_client_gets_a_reason_with_an_id_that_can_be_explained() -> None:
    async with full(Discard(), max_errors=10_000, stress_timeout=1) as (server, clients):
        for client in clients:
            client.send("NOOP\r\n" * 20)
        async with await Client.to(server.addresses[0], source="127.0.0.9") as waiting:
            busy = asyncio.create_task(keep_sending(clients))
            assert (await waiting.reply()).code == 220
            busy.cancel()
            explained = server.gate.explain(list(server.gate._statistics._last)[-1].id)
            assert explained is not None
            assert explained.refusal.rule == "stress"
            assert "--stress-timeout" in explained.cure
            assert any(
                await asyncio.gather(*(is_told(client, explained.refusal.id) for client in clients))
            )


async def is_told(client: Client, name: str) -> bool:
    """Read all replies to a client; return whether the last one is the refusal *name*."""
    with suppress(TimeoutError):
        async with asyncio.timeout(1):
            while (reply := await client.reply()).code:
                if reply.code == 421:
                    return reply.text.startswith("4.3.2") and reply.text.endswith(f"[{name}]")
    return False


async def test_below_three_quarters_of_the_slots_timeouts_are_not_shortened() -> None:
    async with serve(Discard(), limit_connections=8, stress_timeout=0.1) as server:
        clients = [await Client.to(server.addresses[0]) for _ in range(5)]
        for client in clients:
            await client.greet()
        await asyncio.sleep(0.5)
        for client in clients:
            assert (await client.say("NOOP")).code == 250
        clients.append(await Client.to(server.addresses[0]))
        # Six of eight; the first of them has been idle longest.
        assert code_and_enhanced(await clients[0].reply()) == (421, "4.4.2")
        for client in clients:
            await client.close()


@pytest.mark.parametrize("options", [{"stress_timeout": 0}, {"exempt": "127.0.0.0/8"}])
async def test_stress_timeout_can_be_disabled_and_does_not_apply_to_exempt_clients(
    options: dict[str, Any],
) -> None:
    async with full(Discard(), **options) as (server, clients):
        async with await Client.to(server.addresses[0]) as waiting:
            await asyncio.sleep(3 * SHORT)
            for client in clients:
                assert (await client.say("NOOP")).code == 250
            assert (await clients[0].say("QUIT")).code == 221
            assert (await waiting.reply()).code == 220


async def test_a_reload_changes_the_stress_timeout() -> None:
    async with full(Discard(), stress_timeout=0) as (server, clients):
        config = Config.build(
            {
                **{name: getattr(server.config, name) for name in ("listen", "hostname")},
                "limit_connections": 4,
                "stress_timeout": SHORT,
            }
        )
        await server.reload(config)
        assert code_and_enhanced(await clients[0].reply()) == (421, "4.4.2")


@pytest.mark.parametrize(
    ("slots", "reserve", "first"), [(1, 0, 1), (2, 0, 2), (4, 0, 3), (1000, 0, 750), (12, 4, 6)]
)
def test_slots_are_short_from_three_quarters_on(slots: int, reserve: int, first: int) -> None:
    """Of the slots that are not reserved."""
    gate = new_gate(limit_connections=slots, reserve=reserve, exempt="203.0.113.0/24")
    for count in range(1, first + 1):
        assert not gate.slots.stressed
        gate.admit("192.0.2.1")
        assert gate.count == count
    assert gate.slots.stressed
