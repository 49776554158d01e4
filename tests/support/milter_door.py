"""A server with a fake milter, and messages for it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from smtpd_fork.filters import Milter
from support.client import Client, code_and_enhanced
from support.handlers import Collect
from support.scripted_server import listening
from support.server import serve, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from support.milter import TestMilter

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
    """Serve with a milter; yield a client that was greeted, and the handler that has the messages.

    At the end no session is counted, no connection is open, and no task is left.
    """
    tcp = keys.pop("tcp", False)
    options = keys.pop("options", {})
    kept = Collect()
    before = asyncio.all_tasks()
    async with listening(milter, tcp=tcp):
        judge = Milter(milter.address, **keys)
        async with serve([judge, *more, kept], **options) as server:
            async with await Client.to(server.addresses[0]) as client:
                await client.greet()
                yield client, kept
            await until(lambda: not server.gate.count)
            await until(lambda: not judge.status.connections)
        assert (judge.status.connections, judge.status.busy) == (0, 0)
    await until(lambda: asyncio.all_tasks() <= before)


async def send(client: Client, *recipients: str, text: str = AS_SENT) -> tuple[int, str]:
    to = [f"RCPT TO:<{each}>" for each in recipients or ("b@example.com",)]
    reply = await client.say("MAIL FROM:<a@example.org>", *to, "DATA")
    assert reply.code == 354, reply
    client.send(f"{text}.\r\n")
    return code_and_enhanced(await client.reply())
