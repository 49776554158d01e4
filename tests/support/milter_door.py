"""A server behind a milter of the tests', and messages for it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from smtpd_fork.filters import Milter
from support.client import Client, code_and_enhanced
from support.handlers import Collect
from support.milter import TestMilter, milter_server
from support.server import serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

MESSAGE = (
    "From: a@example.org\r\nSubject:  two\r\n\tlines\r\nSubject: second\r\n\r\n"
    "hello\r\n.\r\nbye\r\n"
)
AS_SENT = MESSAGE.replace("\r\n.\r\n", "\r\n..\r\n")
STORED = MESSAGE.encode()
HEADER, _, BODY = STORED.partition(b"\r\n\r\n")
ALL_SILENT = 0xFF080 | 0x100000


@asynccontextmanager
async def door(milter: TestMilter, *more: Any, **keys: Any) -> AsyncIterator[tuple[Client, Any]]:
    """Serve behind a milter; yield a client that was greeted, and the handler that has messages."""
    tcp = keys.pop("tcp", False)
    options = keys.pop("options", {})
    kept = Collect()
    async with milter_server(milter, tcp=tcp):
        chain = [Milter(milter.address, **keys), *more, kept]
        async with (
            serve(chain, **options) as server,
            await Client.to(server.addresses[0]) as client,
        ):
            await client.greet()
            yield client, kept


async def send(client: Client, *recipients: str, text: str = AS_SENT) -> tuple[int, str]:
    to = [f"RCPT TO:<{each}>" for each in recipients or ("b@example.com",)]
    reply = await client.say("MAIL FROM:<a@example.org>", *to, "DATA")
    assert reply.code == 354, reply
    client.send(f"{text}.\r\n")
    return code_and_enhanced(await client.reply())
