"""A web application that stores its requests, and answers with the status that a test sets."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

from aiohttp import web

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable

    from multidict import CIMultiDictProxy


class Request(NamedTuple):
    path: str
    headers: CIMultiDictProxy[str]
    body: bytes


class App:
    """The application.

    :ivar requests: all completely received requests
    :ivar status: of the next answers
    :ivar text: of the next answers
    :ivar before: is awaited before an answer
    :ivar url: of the application
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.status = 200
        self.text = "thanks"
        self.before: Callable[[], Awaitable[object]] | None = None
        self.url = ""

    async def handle(self, request: web.BaseRequest) -> web.Response:
        assert isinstance(request, web.Request)
        body = await request.read()
        self.requests.append(Request(request.path_qs, request.headers, body))
        if self.before is not None:
            await self.before()
        headers = {"ETag": '"1"'}  # S3 requires it.
        if 300 <= self.status < 400:
            headers["Location"] = "/elsewhere"
        return web.Response(status=self.status, text=self.text, headers=headers)


@asynccontextmanager
async def running(
    app: App, *, port: int = 0, tls: ssl.SSLContext | None = None
) -> AsyncIterator[App]:
    """Serve the application; at the end close its connections."""
    application = web.Application(client_max_size=1 << 30)
    application.router.add_route("*", "/{path:.*}", app.handle)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, ssl_context=tls)
    await site.start()
    found = runner.addresses[0][1]
    app.url = f"http{'s' if tls else ''}://127.0.0.1:{found}/in"
    try:
        yield app
    finally:
        await runner.cleanup()
