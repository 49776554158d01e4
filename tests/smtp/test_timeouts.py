"""Timeouts of commands, messages, replies, handlers and sessions, and the rate of a message."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from support.client import MAIL, RCPT, Client, Reply, code_and_enhanced
from support.server import greeted, serve, until

from smtpd_fork.sinks import Discard

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


async def test_a_silent_client_gets_421_and_releases_its_slot() -> None:
    async with greeted(Discard(), timeout=0.1) as client:
        reply = await client.reply()
        assert (reply.code, reply.text[:5]) == (421, "4.4.2")
        assert await client.ended()


async def test_a_client_that_does_not_read_replies_is_disconnected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("smtpd_fork.smtp.ending.LINGER_SECONDS", 0.05)
    async with serve(Discard(), timeout=0.1) as server:
        client = await Client.to(server.addresses[0])
        transport: Any = client.writer.transport
        transport.pause_reading()
        client.send(b"NOOP " + b"x" * 400 + b"\r\n")
        client.send(b"HELP\r\n" * 200_000)
        await until(lambda: server.gate.count)
        await until(lambda: not server.gate.count)
        client.reset()


async def test_a_handler_that_exceeds_its_time_limit_is_cancelled() -> None:
    cancelled = asyncio.Event()

    class Stuck:
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()
            return "250 never"

    async with greeted(Stuck(), handler_timeout=0.1, timeout=5) as client:
        assert (await client.deliver()).code == 451
        await cancelled.wait()
        assert (await client.say("NOOP")).code == 250


@asynccontextmanager
async def sending(begin: str = "", **options: Any) -> AsyncIterator[Client]:
    """Serve, and send commands up to a message, or into it as *begin* says."""
    async with greeted(Discard(), **options) as client:
        await client.say(MAIL, RCPT)
        if begin:
            client.send(f"{begin}\r\n")
        if begin == "DATA":
            assert (await client.reply()).code == 354
        yield client


@pytest.mark.parametrize("begin", ["DATA", "BDAT 100"])
async def test_a_message_that_stalls_is_421(begin: str) -> None:
    async with sending(begin, data_timeout=0.15, timeout=30) as client:
        client.send("x\r\n")
        assert code_and_enhanced(await client.reply()) == (421, "4.4.2")
        assert await client.ended()


async def drip(client: Client, packets: bytes, *, pause: float = 0.02) -> Reply:
    """Send *packets* repeatedly and slowly until there is a reply."""
    reply = asyncio.ensure_future(client.reply())
    try:
        while not reply.done():
            client.send(packets)
            await asyncio.sleep(pause)
        return await reply
    finally:
        reply.cancel()


async def test_a_session_ends_at_its_time_limit() -> None:
    async with greeted(Discard(), session_timeout=0.3) as client:
        began = time.monotonic()
        codes = []
        while True:
            reply = await client.say("MAIL FROM:<")
            codes.append(reply.code)
            if reply.code != 553:
                break
            await asyncio.sleep(0.02)
            assert time.monotonic() - began < 5
        assert codes[-1] == 421
        assert await client.ended()


@pytest.mark.parametrize("begin", ["DATA", "BDAT 1000000"])
async def test_a_session_ends_at_its_time_limit_during_a_message(begin: str) -> None:
    async with sending(begin, session_timeout=0.3, data_timeout=5) as client:
        async with asyncio.timeout(2):
            assert (await drip(client, b"x\r\n")).code == 421


@pytest.mark.parametrize("hook", ["handle_MAIL", "handle_RCPT", "handle_DATA", "handle_NOOP"])
async def test_a_handler_above_its_time_limit_is_451_and_the_session_continues(hook: str) -> None:
    async def sleep(*_: Any) -> str:
        await asyncio.sleep(60)
        return "250 never"

    handler = Discard()
    setattr(handler, hook, sleep)
    async with greeted(handler, handler_timeout=0.1) as client:
        for command in ("NOOP", MAIL, RCPT, "DATA"):
            reply = await client.say(command)
            if reply.code == 451:
                break
        if reply.code == 354:
            client.send("x\r\n.\r\n")
            reply = await client.reply()
        assert code_and_enhanced(reply) == (451, "4.3.0")
        assert (await client.say("RSET")).code == 250


@pytest.mark.parametrize("begin", ["DATA", "BDAT 1000000"])
async def test_a_message_below_the_minimum_rate_is_421(
    begin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smtpd_fork.smtp.deadlines.RATE_SECONDS", 0.2)
    async with sending(begin, min_data_rate=10_000, data_timeout=5, timeout=5) as client:
        async with asyncio.timeout(2):
            assert code_and_enhanced(await drip(client, b"x\r\n")) == (421, "4.4.2")


async def test_a_message_above_the_minimum_rate_may_take_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("smtpd_fork.smtp.deadlines.RATE_SECONDS", 0.1)
    async with sending("DATA", min_data_rate=1000, data_timeout=5, timeout=5) as client:
        for _ in range(20):
            client.send(("x" * 500 + "\r\n").encode())
            await asyncio.sleep(0.02)
        client.send(".\r\n")
        assert (await client.reply()).code == 250


async def test_a_client_that_has_sent_much_may_not_become_slow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The rate is measured over the last minute, not over the whole message."""
    monkeypatch.setattr("smtpd_fork.smtp.deadlines.RATE_SECONDS", 0.1)
    async with sending("DATA", min_data_rate=1000, data_timeout=5, timeout=5) as client:
        client.send(b"x\r\n" * 1_000_000)
        async with asyncio.timeout(10):
            assert code_and_enhanced(await drip(client, b"x\r\n")) == (421, "4.4.2")


async def test_noop_between_chunks_does_not_extend_the_time_of_a_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("smtpd_fork.smtp.deadlines.RATE_SECONDS", 0.1)
    async with sending(min_data_rate=1000, data_timeout=5, timeout=5) as client:
        client.send(b"BDAT 100000\r\n" + b"x" * 100_000)
        assert (await client.reply()).code == 250
        async with asyncio.timeout(10):
            while (reply := await client.say("NOOP")).code == 250:
                await asyncio.sleep(0.02)
        assert code_and_enhanced(reply) == (421, "4.4.2")


async def test_the_timeout_between_chunks_is_that_within_a_message() -> None:
    async with sending(data_timeout=0.2, timeout=60) as client:
        client.send(b"BDAT 3\r\nabc")
        assert (await client.reply()).code == 250
        assert code_and_enhanced(await client.reply()) == (421, "4.4.2")


async def test_the_rate_of_chunks_counts_all_of_the_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("smtpd_fork.smtp.deadlines.RATE_SECONDS", 0.1)
    async with sending(min_data_rate=1000, data_timeout=5, timeout=5) as client:
        client.send(b"BDAT 100000\r\n" + b"x" * 100_000)
        assert (await client.reply()).code == 250
        await asyncio.sleep(0.3)
        client.send(b"BDAT 10 LAST\r\n12345")
        await asyncio.sleep(0.1)
        client.send(b"67890")
        assert (await client.reply()).code == 250
