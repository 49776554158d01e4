"""Received bytes do not extend a deadline: a slow client has the time of a silent one."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from support.auth import check
from support.client import Client, code_and_enhanced
from support.server import greeted, serve, until

from smtpd_fork.sinks import Discard

if TYPE_CHECKING:
    from support.tls import Certificates

SHORT, LONG = 0.2, 60.0

HANDSHAKE = b"\x16\x03\x01\x3f\xff\x01\x00\x3f\xfb"
"""The beginning of a TLS client: a record of 16 KiB, the rest of which is never sent."""


class Drip(NamedTuple):
    """A state in which a client stays as long as it sends data.

    :ivar settings: short times for this state, and no other
    :ivar steps: commands that lead to the state; the reply to each is awaited
    :ivar first: the data that begins the state
    :ivar drop: the data that is sent repeatedly
    """

    settings: dict[str, Any]
    steps: tuple[str, ...] = ()
    first: bytes = b""
    drop: bytes = b"x"
    banner: bool = True


DRIPS = {
    "a command": Drip({"timeout": SHORT}, first=b"NOOP "),
    "a command behind another": Drip({"timeout": SHORT}, first=b"NOOP\r\nNOOP "),
    "a command without an end": Drip({"timeout": SHORT}, drop=b"x" * 4000),
    "a command after EHLO": Drip({"timeout": SHORT}, ("EHLO x",), b"MAIL FROM:<"),
    "a command in a transaction": Drip(
        {"timeout": SHORT}, ("EHLO x", "MAIL FROM:<a@example.com>"), b"RCPT TO:<"
    ),
    "the answer to a challenge": Drip({"timeout": SHORT}, ("EHLO x", "AUTH LOGIN"), b"Ym9i"),
    "the second answer": Drip({"timeout": SHORT}, ("EHLO x", "AUTH LOGIN", "Ym9i"), b"cGFz"),
    "an answer without an end": Drip(
        {"timeout": SHORT}, ("EHLO x", "AUTH PLAIN"), drop=b"x" * 4000
    ),
    "a PROXY header": Drip(
        {"proxy_timeout": SHORT, "listen": ["smtp+proxy:127.0.0.1:0"], "proxy_trust": "127.0.0.1"},
        first=b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x0f\xff",
        banner=False,
    ),
    "implicit TLS": Drip(
        {"tls_handshake_timeout": SHORT, "listen": ["smtps:127.0.0.1:0"]},
        first=HANDSHAKE,
        drop=b"\0",
        banner=False,
    ),
    "STARTTLS": Drip(
        {"tls_handshake_timeout": SHORT}, ("EHLO x", "STARTTLS"), HANDSHAKE, drop=b"\0"
    ),
}


@pytest.mark.parametrize("name", DRIPS)
async def test_received_bytes_do_not_extend_a_deadline(
    name: str, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smtpd_fork.smtp.ending.HALF_CLOSED_SECONDS", 0.05)
    drip = DRIPS[name]
    options = {"authenticator": check, "auth_require_tls": False}
    settings = {"timeout": LONG, "session_timeout": LONG, **drip.settings}
    async with (
        serve(
            Discard(), tls_context=certificates.server, session_options=options, **settings
        ) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        if drip.banner:
            await client.reply()
        for step in drip.steps:
            assert (await client.say(step)).code in {220, 250, 334}
        client.send(drip.first)
        await until(lambda: server.gate.count)
        async with asyncio.timeout(10):
            while server.gate.count:
                client.send(drip.drop)
                await asyncio.sleep(0.02)


async def test_a_client_whose_session_has_ended_cannot_stay_by_sending(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("smtpd_fork.smtp.ending.HALF_CLOSED_SECONDS", SHORT)
    async with (
        serve(Discard(), max_errors=0) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.greet()
        client.send("nonsense\r\nmore ")
        assert (await client.reply()).code == 421
        async with asyncio.timeout(10):
            while server.gate.count:
                client.send(b"x" * 100)
                await asyncio.sleep(0.02)


async def test_a_command_that_has_begun_has_less_time_than_the_wait_for_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("smtpd_fork.smtp.deadlines.COMMAND_SECONDS", 0.2)
    async with (
        serve(Discard(), timeout=LONG) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        client.send("NO")
        await client.reply()
        assert code_and_enhanced(await client.reply()) == (421, "4.4.2")


async def test_each_command_has_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """However commands are cut: the rest of a packet begins the time anew with the next one."""
    monkeypatch.setattr("smtpd_fork.smtp.deadlines.COMMAND_SECONDS", 1)
    async with greeted(Discard(), timeout=LONG) as client:
        client.send("NO")
        for _ in range(12):
            await asyncio.sleep(0.1)
            client.send("OP\r\nNO")
            assert (await client.reply()).code == 250


@pytest.mark.parametrize("asked_again", [True, False])
async def test_a_stop_does_not_wait_for_the_answer_to_a_challenge(asked_again: bool) -> None:
    """Neither for the awaited one nor, after the call of the authenticator, for another one."""

    async def auth_TWICE(server: Any, args: list[str]) -> Any:
        await server.challenge_auth("one")
        asked.set()
        if not asked_again:
            await stopping.wait()
        return await server.challenge_auth("two")

    asked, stopping = asyncio.Event(), asyncio.Event()
    handler = Discard()
    handler.auth_TWICE = auth_TWICE  # type: ignore[attr-defined]
    options = {"auth_require_tls": False}
    async with serve(handler, session_options=options, shutdown_timeout=LONG) as server:
        client = await Client.to(server.addresses[0])
        await client.greet()
        assert (await client.say("AUTH TWICE")).code == 334
        client.send(b64encode(b"1") + b"\r\n")
        await asked.wait()
        if asked_again:
            assert (await client.reply()).code == 334
        stop = asyncio.create_task(server.stop())
        await asyncio.sleep(0.01)
        stopping.set()
        async with asyncio.timeout(10):
            assert await stop == 0
        await client.close()
