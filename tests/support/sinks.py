"""Sinks without a server: their replies, and what is left after they were closed."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from smtpd_fork.sinks import Sink
from smtpd_fork.sinks.server_sink import ServerSink
from support.peers import proc
from support.server import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from smtpd_fork.message import Mail
    from support.client import Client

SinkT = TypeVar("SinkT", bound=ServerSink)

DELIVERED = "250 2.0.0 Ok: queued as 77-1-1"
DOWN = "451 4.4.1 The destination is not available, try again later"
NOT_TAKEN = "451 4.3.0 The destination did not take the message, try again later"
BUSY = "451 4.3.2 All connections to the destination are in use, try again later"

MESSAGE = "Subject: hello\r\n\r\nhello\r\n"


def open_sockets() -> set[str]:
    found = set()
    for descriptor in proc("self", "fd").iterdir():
        with suppress(OSError):
            found.add(str(descriptor.readlink()))
    return {each for each in found if each.startswith("socket:")}


@asynccontextmanager
async def closing(sink: SinkT) -> AsyncIterator[SinkT]:
    """Close the sink; no task and no socket of it may be left."""
    before = asyncio.all_tasks()
    sockets = open_sockets()
    try:
        yield sink
    finally:
        await sink.close()
    with suppress(TimeoutError):
        await until(lambda: asyncio.all_tasks() <= before)
    left = asyncio.all_tasks() - before
    assert not left, f"close() leaves tasks: {left}"
    await until(lambda: open_sockets() <= sockets)
    assert (sink.status.busy, sink.status.waiting) == (0, 0)


class Keeps(Sink):
    """Stores the recipients of each message, and gives the replies that a test sets."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.got: list[tuple[str, ...]] = []
        self.mails: list[Mail] = []

    async def deliver(self, mail: Mail) -> Any:
        self.got.append(tuple(each.address for each in mail.recipients))
        self.mails.append(mail)
        answer = self.answers.pop(0) if self.answers else "250 2.0.0 Ok"
        if isinstance(answer, BaseException):
            raise answer
        if isinstance(answer, asyncio.Event):
            await answer.wait()
            return "250 2.0.0 Ok"
        return answer


async def send(client: Client, *recipients: str, body: str = MESSAGE) -> list[str]:
    """Send a message; return the replies to RCPT, and to the message if there was one."""
    await client.say("MAIL FROM:<a@example.org>")
    replies = [await client.say(f"RCPT TO:<{each}>") for each in recipients]
    if any(each.code == 250 for each in replies):
        assert (await client.say("DATA")).code == 354
        client.send(f"{body}.\r\n")
        replies.append(await client.reply())
    else:
        await client.say("RSET")
    return [f"{each.code} {each.text}" for each in replies]
