"""A server in the test's event loop."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from smtpd_fork import Server
from support.client import PATIENCE, Client
from support.peers import needs_ipv6_for

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from smtpd_fork.server.running import Running


@asynccontextmanager
async def serve(handler: Any, **options: Any) -> AsyncIterator[Server]:
    """Serve on a free port; at the end the gate's counts must be 0."""
    options.setdefault("listen", ["127.0.0.1:0"])
    needs_ipv6_for(options["listen"])
    options.setdefault("hostname", "mx.example.com")
    options.setdefault("shutdown_timeout", 5)
    async with Server(handler, **options) as server:
        yield server
        assert server.audit() == []
    assert server.gate.count == 0
    assert server.gate.clients == {}
    assert server.sessions == 0


@asynccontextmanager
async def greeted(handler: Any, **options: Any) -> AsyncIterator[Client]:
    """Serve, and yield a client that has been greeted and has sent EHLO."""
    async with serve(handler, **options) as server:
        async with await Client.to(server.addresses[0]) as client:
            await client.greet()
            yield client


async def until(happened: Callable[[], object]) -> None:
    """Poll until a condition of this event loop is true that has no event."""
    async with asyncio.timeout(PATIENCE):
        while not happened():
            await asyncio.sleep(0.001)


def running(server: Server) -> Running:
    """Return the runtime of a server, which exists from its start to its end."""
    assert server._running is not None
    return server._running
