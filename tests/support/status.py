"""A server with the HTTP service for its status, in the test's event loop, and an HTTP client."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from smtpd_fork import Config, Server
from smtpd_fork.dialogue import Tally
from smtpd_fork.listeners import open_listeners
from smtpd_fork.observe.status_server import StatusServer
from support.client import PATIENCE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from smtpd_fork.observe.http_server import HttpServer

PATHS = ("/", "/status.json", "/metrics", "/healthz", "/readyz")


class Page(NamedTuple):
    status: int
    headers: dict[str, str]
    body: str


class Watched(NamedTuple):
    """A server, its status, and the address of the HTTP service."""

    server: Server
    status: StatusServer
    address: Any

    @property
    def http(self) -> HttpServer:
        assert self.status._http is not None
        return self.status._http

    async def get(self, path: str, **more: str) -> Page:
        return await get(self.address, path, **more)


async def ask(address: Any, request: bytes) -> Page:
    """Send a request unchanged; read the whole answer. A reset is an empty answer."""
    answer = b""
    async with asyncio.timeout(PATIENCE):
        if isinstance(address, str):
            reader, writer = await asyncio.open_unix_connection(address)
        else:
            reader, writer = await asyncio.open_connection(*address[:2])
        try:
            writer.write(request)
            with suppress(ConnectionResetError):
                answer = await reader.read()
        finally:
            writer.close()
    head, _, body = answer.decode().partition("\r\n\r\n")
    first, *lines = head.split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return Page(int(first.split()[1]) if first else 0, headers, body)


async def get(address: Any, path: str, *, method: str = "GET", accept: str = "*/*") -> Page:
    head = f"{method} {path} HTTP/1.1\r\nHost: evil.example\r\nAccept: {accept}\r\n\r\n"
    return await ask(address, head.encode())


@asynccontextmanager
async def watched(
    handler: Any, *, at: str = "127.0.0.1:0", **options: Any
) -> AsyncIterator[Watched]:
    """Serve mail and the status; at the end the gate's counts must be 0."""
    options.setdefault("listen", ["127.0.0.1:0"])
    options.setdefault("hostname", "mx.example.com")
    options.setdefault("shutdown_timeout", 5)
    listeners = open_listeners(Config(listen=(at,), socket_mode=0o600))
    async with Server(handler, tally=Tally(timing=True), **options) as server:
        status = StatusServer(server, listeners)
        await status.start()
        try:
            yield Watched(server, status, listeners[0].bound)
        finally:
            await status.stopping()
            await server.stop()
            await status.stop()
    assert server.gate.count == 0
