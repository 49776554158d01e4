"""MAIL and RCPT: the forms of an address, other errors, and their replies."""

from __future__ import annotations

import re
from typing import Any

import pytest
from aiosmtpd.smtp import MISSING
from support.client import MAIL, RCPT, Client, code_and_enhanced
from support.handlers import Collect
from support.server import greeted, serve

from smtpd_fork.sinks import Discard

TAKEN = {
    "MAIL FROM:<a@b.c>": "a@b.c",
    "MAIL FROM: <a@b.c>": "a@b.c",
    "MAIL FROM:   <a@b.c>  ": "a@b.c",
    "mail from:<a@b.c>": "a@b.c",
    "MaIl fRoM:<a@b.c>": "a@b.c",
    "MAIL  FROM:<a@b.c>": "a@b.c",
    "MAIL FROM:<>": "<>",
    "MAIL FROM: <> SIZE=5": "<>",
}
"""Also with strict paths."""

TAKEN_UNLESS_STRICT = {
    "MAIL FROM:a@b.c": "a@b.c",
    "MAIL FROM: a@b.c": "a@b.c",
    "MAIL FROM:\ta@b.c": "a@b.c",
    "MAIL FROM:\t<a@b.c>": "a@b.c",
    "MAIL FROM: \t <a@b.c>": "a@b.c",
    "mail from: a@b.c ": "a@b.c",
    "MAIL FROM:a@b.c SIZE=5 BODY=8BITMIME": "a@b.c",
    "MAIL FROM:\ta@b.c\tSIZE=5\t BODY=8BITMIME": "a@b.c",
    "MAIL FROM:<a@b.c>\tSIZE=5": "a@b.c",
    'MAIL FROM:"a b"@c.d SIZE=5': '"a b"@c.d',
}

REFUSED = {
    "MAIL FROM:": (501, "5.5.4"),
    "MAIL FROM:\t": (501, "5.5.4"),
    "MAIL FROM :<a@b.c>": (501, "5.5.4"),
    "MAIL FROM<a@b.c>": (501, "5.5.4"),
    "MAIL FROM:Joe <a@b.c>": (501, "5.5.4"),
    'MAIL FROM:"Joe" <a@b.c>': (501, "5.5.4"),
    "MAIL FROM:a@b.c <d@e.f>": (501, "5.5.4"),
    "MAIL FROM:a@b.c(Joe)": (553, "5.1.7"),
    "MAIL FROM:(Joe)a@b.c": (553, "5.1.7"),
    "MAIL FROM:<a@b.c>SIZE=5": (553, "5.1.7"),
    "MAIL FROM:<a@b.c": (553, "5.1.7"),
    "MAIL FROM:a@b.c>": (553, "5.1.7"),
    "MAIL FROM:a": (553, "5.1.7"),
    "MAIL FROM:<postmaster>": (553, "5.1.7"),
    "MAIL FROM:postmaster": (553, "5.1.7"),
    "MAIL FROM:<a@b.>": (553, "5.1.7"),
    "RCPT TO:Joe <a@b.c>": (501, "5.5.4"),
    "RCPT TO:<a@b.>": (553, "5.1.3"),
    "RCPT TO:<a@b.c": (553, "5.1.3"),
    "RCPT TO:<a@[tag:foo]>": (553, "5.1.3"),
    "RCPT TO:<>": (501, "5.1.3"),
}


async def sender_of(server: Any, handler: Collect, command: str) -> str:
    """Send a message with *command*; return the sender that the handler got."""
    async with await Client.to(server.addresses[0]) as client:
        await client.greet()
        assert (await client.say(command)).code == 250, command
        await client.say(RCPT)
        await client.say("DATA")
        client.send("x\r\n.\r\n")
        assert (await client.reply()).code == 250
    envelope = handler.envelopes[-1]
    if "SIZE" in command:
        assert envelope.mail_params["SIZE"] == "5"
    if "BODY" in command:
        assert envelope.body == "8BITMIME"
    return str(envelope.mail_from)


@pytest.mark.parametrize("strict", [True, False])
async def test_an_address_is_accepted_however_clients_write_it(strict: bool) -> None:
    handler = Collect()
    async with serve(handler, strict_paths=strict) as server:
        for command, address in TAKEN.items():
            assert await sender_of(server, handler, command) == address, command
        for command, address in TAKEN_UNLESS_STRICT.items():
            if not strict:
                assert await sender_of(server, handler, command) == address, command
                continue
            async with await Client.to(server.addresses[0]) as client:
                await client.greet()
                assert (await client.say(command)).code in {501, 553}, command


async def test_a_recipient_is_accepted_like_a_sender() -> None:
    handler = Collect()
    written = [
        re.sub("(?i)from", "to", re.sub("(?i)mail", "rcpt", command))
        for command in (*TAKEN, *TAKEN_UNLESS_STRICT)
        if "<>" not in command and "=" not in command
    ]
    async with greeted(handler) as client:
        await client.say(MAIL)
        for command in (*written, "rcpt to:postmaster", "RCPT TO:<Postmaster>"):
            assert (await client.say(command)).code == 250, command
        await client.say("DATA")
        client.send("x\r\n.\r\n")
        assert (await client.reply()).code == 250
    assert handler.envelopes[0].rcpt_tos == ["a@b.c"] * len(written) + ["postmaster", "Postmaster"]


@pytest.mark.parametrize("command", REFUSED)
async def test_an_invalid_address_is_rejected_with_the_status_of_sender_or_recipient(
    command: str,
) -> None:
    """RFC 3463 3.2: X.1.7 is a malformed sender, X.1.3 a malformed recipient."""
    async with greeted(Discard()) as client:
        if command.startswith("RCPT"):
            await client.say(MAIL)
        assert code_and_enhanced(await client.say(command)) == REFUSED[command]
        await client.say("RSET")
        assert (await client.deliver()).code == 250


@pytest.mark.parametrize(
    ("command", "asked"),
    [
        ("VRFY <a@b.c>", "a@b.c"),
        ("VRFY a@b.c", "a@b.c"),
        ("VRFY user", "user"),
        ("VRFY Joe User", "Joe User"),
        ("VRFY user SMTPUTF8", "user"),
        ("VRFY a@b.c smtputf8", "a@b.c"),
        ("VRFY <ä@b.c> SMTPUTF8", "ä@b.c"),
        ("VRFY SMTPUTF8", "SMTPUTF8"),
        ("VRFY postmaster", "postmaster"),
        ("VRFY @@", None),
        ("VRFY <", None),
        ("VRFY <a", None),
        ("VRFY a@b.c d@e.f", None),
    ],
)
async def test_vrfy_discloses_no_user_and_calls_the_handler_as_aiosmtpd_does(
    command: str, asked: str | None
) -> None:
    seen: list[str] = []

    class Look(Discard):
        async def handle_VRFY(self, server: Any, session: Any, envelope: Any, who: str) -> Any:
            seen.append(who)
            return MISSING

    async with greeted(Look()) as client:
        assert code_and_enhanced(await client.say(command)) == (
            (252, "2.0.0") if asked else (502, "5.1.3")
        )
    assert seen == ([asked] if asked else [])
