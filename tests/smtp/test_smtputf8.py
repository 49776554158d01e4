"""SMTPUTF8 (RFC 6531) and 8BITMIME (RFC 6152): addresses and messages that are not ASCII."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.client import MAIL, RCPT, Client, code_and_enhanced
from support.daemon import messages
from support.handlers import Collect
from support.server import greeted, serve

from smtpd_fork.sinks import Discard, Maildir

if TYPE_CHECKING:
    from pathlib import Path


async def test_an_address_in_utf8_requires_the_parameter() -> None:
    handler = Collect()
    async with serve(handler) as server, await Client.to(server.addresses[0]) as client:
        assert "SMTPUTF8" in (await client.greet()).lines
        assert code_and_enhanced(await client.say("MAIL FROM:<ä@b.c>")) == (553, "5.6.7")
        await client.say(MAIL)
        assert code_and_enhanced(await client.say("RCPT TO:<ä@b.c>")) == (553, "5.6.7")
        await client.say("RSET")
        assert (await client.say("MAIL FROM:<ä@ö.example> SMTPUTF8")).code == 250
        assert (await client.say("RCPT TO:<用户@例子.广告>")).code == 250
        await client.say("DATA")
        client.send("Subject: ü\r\n.\r\n")
        assert (await client.reply()).code == 250
        assert (await client.say(MAIL)).code == 250
        assert (await client.say("RCPT TO:<ä@b.c>")).code == 553  # the parameter is MAIL's, once
    (envelope,) = handler.envelopes
    assert (envelope.mail_from, envelope.rcpt_tos) == ("ä@ö.example", ["用户@例子.广告"])
    assert envelope.smtp_utf8
    assert envelope.content == "Subject: ü\r\n".encode()


@pytest.mark.parametrize(
    ("scheme", "parameter", "protocol"),
    [("smtp", " SMTPUTF8", "UTF8SMTP"), ("smtp", "", "ESMTP"), ("lmtp", " SMTPUTF8", "UTF8LMTP")],
)
async def test_received_names_the_protocol_with_smtputf8(
    scheme: str, parameter: str, protocol: str, tmp_path: Path
) -> None:
    """RFC 6531 4.3."""
    async with serve(Maildir(tmp_path), listen=[f"{scheme}:127.0.0.1:0"]) as server:
        async with await Client.to(server.addresses[0]) as client:
            await client.reply()
            hello = "EHLO x" if scheme == "smtp" else "LHLO x"
            await client.say(hello, f"{MAIL}{parameter}", RCPT, "DATA")
            client.send("Subject: x\r\n.\r\n")
            assert (await client.reply()).code == 250
    (text,) = messages(tmp_path)
    assert f" with {protocol} id " in text


@pytest.mark.parametrize("bad", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf8\x88"])
async def test_invalid_utf8_is_rejected(bad: bytes) -> None:
    async with greeted(Discard()) as client:
        client.send(b"MAIL FROM:<" + bad + b"@b.c> SMTPUTF8\r\n")
        assert code_and_enhanced(await client.reply()) == (500, "5.5.2")
        assert (await client.say(RCPT)).code == 503


async def test_a_message_may_contain_eight_bit_octets() -> None:
    handler = Collect()
    async with serve(handler) as server, await Client.to(server.addresses[0]) as client:
        assert "8BITMIME" in (await client.greet()).lines
        await client.say(f"{MAIL} BODY=8bitmime", RCPT, "DATA")
        client.send(bytes(b for b in range(1, 256) if b not in b"\r\n") + b"\r\n.\r\n")
        assert (await client.reply()).code == 250
    assert handler.envelopes[0].body == "8BITMIME"
    assert len(handler.messages[0]) == 255
