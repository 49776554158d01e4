"""Junk: unknown commands and commands without effect are limited; browsers get no reply to them."""

from __future__ import annotations

from typing import Any

import pytest
from aiosmtpd.smtp import MISSING, AuthResult
from support.client import MAIL, RCPT, Client, code_and_enhanced, replies
from support.server import greeted, serve

from smtpd_fork.sinks import Discard


@pytest.mark.parametrize(
    "junk",
    ["FOO", "", " ", "x" * 600, "y" * 20_000, "NO\0OP", "N\rOP", "ÄÖÜ", "FOO BAR"],
    ids=lambda junk: repr(junk[:8]),
)
async def test_more_unknown_commands_than_max_errors_are_421(junk: str) -> None:
    async with greeted(Discard(), max_errors=3) as client:
        for _ in range(3):
            assert code_and_enhanced(await client.say(junk))[0] == 500
        assert code_and_enhanced(await client.say(junk)) == (421, "4.7.0")
        assert await client.ended()


@pytest.mark.parametrize("idle", ["NOOP", "NOOP x", "RSET", "VRFY a@b.c", "HELP", "EXPN x"])
async def test_commands_without_effect_are_limited(idle: str) -> None:
    async with greeted(Discard(), max_errors=3) as client:
        codes = []
        for _ in range(100):
            codes.append((await client.say(idle)).code)
            if codes[-1] in {0, 421}:
                break
        assert codes[-1] == 421
        assert len(codes) > 10  # some are allowed
        assert await client.ended()


async def test_a_message_resets_the_count_of_commands_without_effect() -> None:
    async with greeted(Discard(), max_errors=3) as client:
        for _ in range(30):
            for command in ("NOOP", "RSET", "NOOP"):
                assert (await client.say(command)).code == 250
            assert (await client.deliver()).code == 250


@pytest.mark.parametrize("verb", ["GET", "POST", "HEAD", "PUT", "OPTIONS", "CONNECT"])
async def test_a_browser_gets_421_at_once(verb: str) -> None:
    async with serve(Discard()) as server, await Client.to(server.addresses[0]) as client:
        await client.reply()
        client.send(f"{verb} / HTTP/1.1\r\nHost: x\r\n\r\nMAIL FROM:<a@b.c>\r\n")
        assert (await client.reply()).code == 421
        assert (await client.reply()).code == 0


class Refuses:
    """Rejects everything that a hook can reject."""

    async def handle_MAIL(self, *args: Any) -> Any:
        return "550 5.7.1 No" if args[3].startswith("no") else MISSING

    async def handle_RCPT(self, *args: Any) -> Any:
        return "450 4.7.1 Not yet" if args[3].startswith("no") else MISSING

    async def handle_DATA(self, *args: Any) -> Any:
        return "554 5.7.1 Spam"

    async def handle_VRFY(self, *args: Any) -> str:
        return "550 5.7.1 No"

    async def handle_NOOP(self, *args: Any) -> str:
        return "550 5.7.1 No"

    async def handle_QUIT(self, *args: Any) -> str:
        raise ValueError


MESSAGE = [MAIL, RCPT, "DATA", "x\r\n."]
AUTH = {"authenticator": lambda *_: AuthResult(success=True), "auth_require_tls": False}
REFUSED: dict[str, tuple[list[str], list[str], dict[str, Any]]] = {
    "a recipient, by a handler": ([MAIL], ["RCPT TO:<no@b.c>"], {}),
    "a recipient, as malformed": ([MAIL], ["RCPT TO:<b@>"], {}),
    "a recipient, for a parameter": ([MAIL], [f"{RCPT} FOO=1"], {}),
    "a recipient, without a sender": ([], [RCPT], {}),
    "a recipient, each after another sender": ([], [MAIL, "RCPT TO:<no@b.c>", "RSET"], {}),
    "a sender, by a handler": ([], ["MAIL FROM:<no@b.c>"], {}),
    "a sender, as malformed": ([], ["MAIL FROM:<a@>"], {}),
    "a sender, for its size": ([], [f"{MAIL} SIZE=99999999999"], {}),
    "a second sender": ([MAIL], [MAIL], {}),
    "a message, by a handler": ([], MESSAGE, {}),
    "a message, for its size": ([], MESSAGE, {"max_message_size": 1}),
    "DATA without a recipient": ([], ["DATA"], {}),
    "BDAT without a recipient": ([], ["BDAT 0"], {}),
    "VRFY, by a handler": ([], ["VRFY a@b.c"], {}),
    "VRFY without an argument": ([], ["VRFY"], {}),
    "NOOP, by a handler": ([], ["NOOP"], {}),
    "QUIT that fails": ([], ["QUIT x"], {}),
    "RSET with an argument": ([], ["RSET x"], {}),
    "HELP for what there is not": ([], ["HELP me"], {}),
    "EXPN": ([], ["EXPN list"], {}),
    "EHLO without a name": ([], ["EHLO"], {}),
    "STARTTLS where there is none": ([], ["STARTTLS"], {}),
    "AUTH where there is none": ([], ["AUTH PLAIN"], {}),
    "AUTH twice": (["AUTH PLAIN AGEAYg=="], ["AUTH PLAIN AGEAYg=="], {"session_options": AUTH}),
    "AUTH by an unknown mechanism": ([], ["AUTH FOO"], {"session_options": AUTH}),
    "mail where AUTH is required": ([], [MAIL], {"session_options": {"auth_required": True}}),
    "a command before EHLO": (["RSET"], [RCPT], {}),
}
"""Commands that are sent first, and commands that are repeated and rejected each time."""


@pytest.mark.parametrize("refused", REFUSED)
@pytest.mark.parametrize("scheme", ["smtp", "lmtp"])
async def test_no_rejected_command_can_be_repeated_without_limit(refused: str, scheme: str) -> None:
    before, repeated, options = REFUSED[refused]
    hello = "EHLO" if scheme == "smtp" else "LHLO"
    async with (
        serve(Refuses(), listen=[f"{scheme}:127.0.0.1:0"], max_rejects=8, **options) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        assert (await client.reply()).code == 220
        for command in (f"{hello} x", *before):
            assert (await client.say(command)).code // 100 == 2
        refusals = 0
        while refusals < 20:
            codes = [
                (await client.say(command.replace("EHLO", hello))).code for command in repeated
            ]
            if 421 in codes or 0 in codes:
                break
            refusals += any(code >= 400 for code in codes)
        assert 421 in codes
        assert refusals in {8, 9}  # after the reply to a message, 421 is sent separately
        assert await client.ended()


async def test_rejected_recipients_are_counted_for_the_whole_session() -> None:
    async with greeted(Refuses(), max_rejects=100) as client:
        for _ in range(4):
            await client.say(MAIL)
            for _ in range(25):
                assert (await client.say("RCPT TO:<no@b.c>")).code == 450
            await client.say("RSET")
        await client.say(MAIL)
        assert (await client.say(RCPT)).code == 250
        assert code_and_enhanced(await client.say("RCPT TO:<no@b.c>")) == (421, "4.7.0")
        assert await client.ended()


async def test_a_client_that_checks_eighty_addresses_gets_eighty_replies() -> None:
    """As servers do that verify senders: MAIL, RCPT, RSET, and no message."""
    async with greeted(Refuses()) as client:
        for _ in range(80):
            for command, code in ((MAIL, 250), ("RCPT TO:<no@b.c>", 450), ("RSET", 250)):
                assert (await client.say(command)).code == code
        assert (await client.say("QUIT x")).code == 501


async def test_recipients_above_the_limit_of_a_message_do_not_end_the_session() -> None:
    """RFC 5321 4.5.3.1.10: the client sends the message to them later."""
    recipients = [f"RCPT TO:<r{n}@example.com>" for n in range(300)]
    async with greeted(Discard(), max_recipients=50) as client:
        client.send("\r\n".join([MAIL, *recipients, "DATA", ""]))
        assert await replies(client, 302) == [250] * 51 + [452] * 250 + [354]
        client.send("x\r\n.\r\n")
        assert (await client.reply()).code == 250
        client.send("\r\n".join([MAIL, *recipients * 5, ""]))
        codes = await replies(client, 1501)
    assert codes[:51] == [250] * 51
    assert codes.count(452) == 1000 - 250 + 100
    assert codes[51 + 850] == 421


async def test_a_message_that_some_recipients_have_gets_all_its_replies() -> None:
    """LMTP: after 421 in the middle, the client would send it again to recipients that have it."""

    class Some(Discard):
        async def handle_DATA(self, *args: Any) -> Any:
            return ["550 5.1.1 No", "250 2.0.0 Ok", "550 5.1.1 No"]

    async with (
        serve(Some(), listen=["lmtp:127.0.0.1:0"], max_rejects=0) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.reply()
        await client.say("LHLO x", MAIL, RCPT, RCPT, RCPT, "DATA")
        client.send("x\r\n.\r\n")
        assert await replies(client, 3) == [550, 250, 550]
        assert (await client.say("NOOP")).code == 250


async def test_a_rejection_of_several_lines_counts_once_even_if_pushed_line_by_line() -> None:
    class Lines(Discard):
        async def handle_VRFY(self, server: Any, *args: Any) -> str:
            await server.push("550-5.7.1 No,")
            await server.push("550-5.7.1 and no,")
            return "550-5.7.1 and\r\n550 5.7.1 no"

    async with greeted(Lines(), max_rejects=5) as client:
        for _ in range(5):
            assert len((await client.say("VRFY a@b.c")).lines) == 4
        client.send("VRFY a@b.c\r\n")
        while (reply := await client.reply()).code == 550:
            pass
        assert reply.code == 421
