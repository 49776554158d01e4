"""Sinks without a server: their replies, and what is left of them after their end."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, TypeVar

from smtpd_fork.sinks.server_sink import ServerSink
from support.peers import proc
from support.server import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SinkT = TypeVar("SinkT", bound=ServerSink)

DELIVERED = "250 2.0.0 Ok: queued as 77-1-1"
DOWN = "451 4.4.1 The destination is not available, try again later"
NOT_TAKEN = "451 4.3.0 The destination did not take the message, try again later"
BUSY = "451 4.3.2 All connections to the destination are in use, try again later"


def open_sockets() -> set[str]:
    found = set()
    for descriptor in proc("self", "fd").iterdir():
        with suppress(OSError):
            found.add(str(descriptor.readlink()))
    return {each for each in found if each.startswith("socket:")}


@asynccontextmanager
async def closing(sink: SinkT) -> AsyncIterator[SinkT]:
    """Close the sink; afterwards no task of it is left, and no socket."""
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
