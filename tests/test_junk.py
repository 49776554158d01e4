"""Junk: what is no command and what does nothing is answered for a while, a browser never."""

from __future__ import annotations

import pytest
from support.client import Client, code_and_enhanced
from support.server import serve

from smtpd_fork.sinks import Discard


@pytest.mark.parametrize(
    "junk",
    ["FOO", "", " ", "x" * 600, "y" * 20_000, "NO\0OP", "N\rOP", "ÄÖÜ", "FOO BAR"],
    ids=lambda junk: repr(junk[:8]),
)
async def test_junk_past_max_errors_is_421(junk: str) -> None:
    async with (
        serve(Discard(), max_errors=3) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.greet()
        for _ in range(3):
            assert code_and_enhanced(await client.say(junk))[0] == 500
        assert code_and_enhanced(await client.say(junk)) == (421, "4.7.0")
        assert await client.ended()


@pytest.mark.parametrize("idle", ["NOOP", "NOOP x", "RSET", "VRFY a@b.c", "HELP", "EXPN x"])
async def test_commands_that_do_nothing_do_not_keep_a_session_for_ever(idle: str) -> None:
    async with (
        serve(Discard(), max_errors=3) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.greet()
        codes = []
        for _ in range(100):
            codes.append((await client.say(idle)).code)
            if codes[-1] in {0, 421}:
                break
        assert codes[-1] == 421
        assert len(codes) > 10  # some are nobody's fault
        assert await client.ended()


async def test_messages_make_up_for_commands_that_do_nothing() -> None:
    async with (
        serve(Discard(), max_errors=3) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.greet()
        for _ in range(30):
            for command in ("NOOP", "RSET", "NOOP"):
                assert (await client.say(command)).code == 250
            assert (await client.deliver()).code == 250


@pytest.mark.parametrize("verb", ["GET", "POST", "HEAD", "PUT", "OPTIONS", "CONNECT"])
async def test_a_browser_is_sent_away_at_once(verb: str) -> None:
    async with serve(Discard()) as server, await Client.to(server.addresses[0]) as client:
        await client.reply()
        client.send(f"{verb} / HTTP/1.1\r\nHost: x\r\n\r\nMAIL FROM:<a@b.c>\r\n")
        assert (await client.reply()).code == 421
        assert (await client.reply()).code == 0
