"""A fake policy server: it sends the answers that a test sets, valid or not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from smtpd_fork.filters import Policy
from support.client import Client, code_and_enhanced
from support.handlers import Collect
from support.scripted_server import ScriptedServer, listening
from support.server import serve, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["MESSAGE", "TestPolicy", "door", "recipient", "send"]

MESSAGE = "Subject: x\r\n\r\ntext\r\n"

Request = dict[str, str]


@dataclass
class TestPolicy(ScriptedServer):
    """Answers of a policy server, and the requests that it received.

    :ivar action: of each answer, or a function that returns it
    :ivar says: what it sends in place of an answer
    :ivar requests: attributes of each
    """

    __test__ = False

    action: str | Callable[[Request], str] = "DUNNO"
    says: bytes | None = None
    requests: list[Request] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)

    @property
    def states(self) -> list[str]:
        return [each["protocol_state"] for each in self.requests]

    async def next_request(self, reader: asyncio.StreamReader) -> Request:
        raw = await reader.readuntil(b"\n\n")
        self.raw.append(raw)
        lines = raw.decode().removesuffix("\n\n").split("\n")
        request = dict(line.split("=", 1) for line in lines)
        self.requests.append(request)
        return request

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            request = await self.next_request(reader)
            action = self.action if isinstance(self.action, str) else self.action(request)
            writer.write(f"action={action}\n\n".encode() if self.says is None else self.says)
            await writer.drain()


@asynccontextmanager
async def door(policy: TestPolicy, *more: Any, **keys: Any) -> AsyncIterator[tuple[Client, Any]]:
    """Serve with a policy server; yield a client that was greeted, and the handler with messages.

    At the end no connection to it and no task is left.
    """
    before = asyncio.all_tasks()
    tcp, options, greet = keys.pop("tcp", False), keys.pop("options", {}), keys.pop("greet", True)
    kept = Collect()
    async with listening(policy, tcp=tcp):
        chain = [Policy(policy.address, **keys), *more, kept]
        async with serve(chain, **options) as server:
            async with await Client.to(server.addresses[0]) as client:
                if greet:
                    await client.greet()
                yield client, kept
    await until(lambda: asyncio.all_tasks() <= before)


async def recipient(client: Client, address: str = "b@example.com") -> tuple[int, str]:
    """Begin a transaction and send RCPT."""
    await client.say("RSET", "MAIL FROM:<a@example.org> SIZE=123")
    return code_and_enhanced(await client.say(f"RCPT TO:<{address}>"))


async def send(client: Client, *recipients: str) -> tuple[int, str]:
    to = [f"RCPT TO:<{each}>" for each in recipients or ("b@example.com",)]
    reply = await client.say("MAIL FROM:<a@example.org>", *to, "DATA")
    if reply.code != 354:
        return code_and_enhanced(reply)
    client.send(f"{MESSAGE}.\r\n")
    return code_and_enhanced(await client.reply())
