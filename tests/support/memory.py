"""Clients whose messages use memory, and a handler that answers when a test lets it."""

from __future__ import annotations

import asyncio
from typing import Any

from smtpd_fork.sinks import Discard
from support.client import MAIL, RCPT, Client

HELLO = b"EHLO x\r\n"

UTF8_MAIL = b"MAIL FROM:<a@b.example> SMTPUTF8\r\n"
LONG_RCPT = f"RCPT TO:<{'ä' * 120}@{'ü' * 30}.example> ORCPT=utf-8;{'x' * 480}\r\n".encode()
TEXT = (b"x" * 78 + b"\r\n") * 12_500


class Slow(Discard):
    """Answers when a test sets its event."""

    supports_dsn = True

    def __init__(self) -> None:
        super().__init__()
        self.inside = 0
        self.leave = asyncio.Event()

    async def handle_NOOP(self, *_: Any) -> str:
        return "250 2.0.0 Ok"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        if envelope.rcpt_tos[0].startswith("slow"):
            self.inside += 1
            await self.leave.wait()
            self.inside -= 1
        return "250 2.0.0 Ok"


async def holder(server: Any, size: int, *, source: str = "127.0.0.1") -> Client:
    """Return a client that has sent a chunk, and not the last one."""
    client = await Client.to(server.addresses[0], source=source)
    await client.greet()
    await client.say(MAIL, RCPT)
    client.send(b"BDAT %d\r\n" % size + b"x" * size)
    assert (await client.reply()).code == 250
    return client
