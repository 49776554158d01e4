"""A fake rspamd: it sends the answers that a test sets."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiohttp import web

from smtpd_fork.filters import Rspamd
from support.client import Client
from support.handlers import Collect
from support.server import serve
from support.sinks import open_sockets

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable

    from multidict import CIMultiDictProxy

    from support.client import Reply

__all__ = ["MESSAGE", "TestRspamd", "door", "outcome", "rspamd_server", "send"]

MESSAGE = "From: a@example.org\r\nSubject: x\r\n\r\nhello\r\n"


@dataclass
class TestRspamd:
    """Answers of rspamd, and the requests that it received.

    :ivar answer: as JSON, or bytes that are sent unchanged
    :ivar password: a request without it gets the status 403
    :ivar before: is awaited before an answer
    :ivar messages: headers and bodies
    """

    __test__ = False

    answer: dict[str, Any] | bytes = field(default_factory=lambda: {"action": "no action"})
    status: int = 200
    password: str = ""
    before: Callable[[], Awaitable[object]] | None = None
    messages: list[tuple[CIMultiDictProxy[str], bytes]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    connections: set[Any] = field(default_factory=set)
    url: str = ""

    async def handle(self, request: web.Request) -> web.Response:
        self.paths.append(request.path)
        self.connections.add(request.transport)
        if request.path.endswith("/ping"):
            return web.Response(text="pong\r\n")
        body = await request.read()
        if self.password and request.headers.get("Password") != self.password:
            return web.Response(status=403, text='{"error":"Unauthorized"}')
        if request.path.endswith("/auth"):
            return web.Response(text='{"auth":"ok"}')
        self.messages.append((request.headers, body))
        if self.before is not None:
            await self.before()
        answer = self.answer
        text = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        return web.Response(body=text, status=self.status, content_type="application/json")


@asynccontextmanager
async def rspamd_server(
    rspamd: TestRspamd | None = None,
    *,
    port: int = 0,
    tls: ssl.SSLContext | None = None,
    path: str = "",
) -> AsyncIterator[TestRspamd]:
    """Serve, at a port or a unix socket; at the end close the connections."""
    rspamd = rspamd or TestRspamd()
    application = web.Application(client_max_size=1 << 30)
    application.router.add_route("*", "/{path:.*}", rspamd.handle)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    if path:
        await web.UnixSite(runner, path).start()
        rspamd.url = f"unix:{path}"
    else:
        await web.TCPSite(runner, "127.0.0.1", port, ssl_context=tls).start()
        rspamd.url = f"http{'s' if tls else ''}://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield rspamd
    finally:
        await runner.cleanup()


@asynccontextmanager
async def door(
    rspamd: TestRspamd, *, options: dict[str, Any] | None = None, **keys: Any
) -> AsyncIterator[tuple[Client, Collect]]:
    """Serve with rspamd; yield a client that was greeted, and the handler with the messages."""
    kept, sockets = Collect(), open_sockets()
    async with rspamd_server(rspamd):
        async with (
            serve([Rspamd([rspamd.url], **keys), kept], **(options or {})) as server,
            await Client.to(server.addresses[0]) as client,
        ):
            await client.greet("client.example")
            yield client, kept
    assert open_sockets() <= sockets


async def send(client: Client, *to: str, text: str = MESSAGE) -> Reply:
    recipients = [f"RCPT TO:<{each}>" for each in to or ("b@example.com",)]
    reply = await client.say("MAIL FROM:<a@example.org>", *recipients, "DATA")
    assert reply.code == 354, reply
    client.send(f"{text}.\r\n")
    return await client.reply()


async def outcome(answer: dict[str, Any] | bytes, **keys: Any) -> tuple[str, list[bytes]]:
    """Return the reply to a message with this answer of rspamd, and the stored messages."""
    async with door(TestRspamd(answer), **keys) as (client, kept):
        reply = await send(client)
    return f"{reply.code} {reply.text}", kept.messages
