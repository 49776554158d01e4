"""ENHANCEDSTATUSCODES (RFC 2034): every reply has one, except those to HELO and EHLO."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

import pytest
from support.client import PATIENCE, Client
from support.server import serve

from smtpd_fork.sinks import Discard

if TYPE_CHECKING:
    from support.tls import Certificates

WALK = [
    *("NOOP", "MAIL FROM:<a@b.c>", "DATA", "EHLO", "HELO", "VRFY a@b.c", "VRFY", "VRFY <"),
    *("HELP", "HELP MAIL", "HELP FOO", "EXPN x", "STARTTLS", "STARTTLS x", "AUTH PLAIN"),
    *("RSET x", "RSET", "FOO", "", "NOOP\rX", "N\0OP", "ÄÖÜ", "QUIT x", "LHLO x", "TURN"),
    "EHLO x",
    *("AUTH", "AUTH FOO", "AUTH PLAIN =", "AUTH PLAIN x y", "RCPT TO:<a@b.c>", "DATA"),
    *("MAIL", "MAIL FROM:<", "MAIL FROM:<a@b.c> X=1", "MAIL FROM:<a@b.c> SIZE=99999999999"),
    *("MAIL FROM:<a@b.c> BODY=X", "MAIL FROM:<ä@b.c>", "MAIL FROM:<a@b.c>", "MAIL FROM:<a@b.c>"),
    *("RCPT", "RCPT TO:<", "RCPT TO:<>", "RCPT TO:<a@b.c> X=1", "RCPT TO:<ä@b.c>"),
    *("DATA", "RCPT TO:<a@b.c>", "DATA x", "BDAT 0", "DATA", "BDAT 0 LAST", "BDAT 0"),
    "x" * 600,
    "y" * 20_000,
    "QUIT",
]


@pytest.mark.parametrize("tls", [False, True])
async def test_every_reply_but_those_to_hello_has_an_enhanced_status_code(
    tls: bool, certificates: Certificates
) -> None:
    options = {"max_errors": 1000, "tls_context": certificates.server if tls else None}
    async with serve(Discard(), **options) as server:
        client = await Client.to(server.addresses[0])
        await client.reply()
        for command in WALK:
            reply = await client.say(command)
            assert reply.code, command
            if reply.code == 220:
                async with asyncio.timeout(PATIENCE):
                    await client.writer.start_tls(certificates.client, server_hostname="localhost")
            if reply.code == 250 and command.startswith(("EHLO ", "HELO ")):
                assert "ENHANCEDSTATUSCODES" in reply.lines or command[0] == "H"
                continue
            for line in reply.lines:
                assert re.match(rf"{str(reply.code)[0]}\.\d{{1,3}}\.\d{{1,3}} ", line), (
                    command,
                    reply,
                )
        assert reply.code == 221
        await client.close()
