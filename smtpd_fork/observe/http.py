"""HTTP: a few pages for a few who ask, from within the loop that serves mail.

aiohttp reads and writes HTTP; what it does not bound is bounded here, so that nobody who asks can
hold up mail: connections at once, new ones a second (the rest wait in the kernel's backlog), bytes
and seconds that each may take. A connection has one answer.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from aiohttp import web

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from smtpd_fork.listeners import Listener

    Page = Callable[[web.BaseRequest], Awaitable["Answer"]]

__all__ = ["Answer", "Front"]

log = logging.getLogger("smtpd_fork.observe")

MOST = 16
"""Connections at once: a Prometheus or two, a load balancer, a few people."""

MOST_A_SECOND = 50
"""Connections that are accepted in a second: one costs about a millisecond."""

LONGEST_SECONDS = 10.0
"""How long a connection may last; Prometheus' own scrape_timeout is 10 s."""

MOST_BYTES = 16 * 1024
"""What a client may send in all: a request of a browser has one or two KiB."""

CLOSING_SECONDS = 0.1
"""How long an answer that is under way has at the end; to aiohttp 0 would be for ever."""

HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Server": "smtpd-fork",
}
"""Of every answer."""

NO_SCRIPT = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
"""The Content-Security-Policy of what is no page."""


class Answer(NamedTuple):
    """What a page says.

    :ivar policy: its Content-Security-Policy
    """

    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    status: int = 200
    policy: str = NO_SCRIPT


class _Connection(web.RequestHandler):
    """A connection that may take so much, and so long."""

    def __init__(self, server: web.Server, closed: Callable[[], None], **options: Any) -> None:
        super().__init__(server, **options)
        self._closed = closed
        self._left = MOST_BYTES
        self._cut: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin (asyncio.BaseProtocol)."""
        self._cut = self._loop.call_later(LONGEST_SECONDS, self._end)
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Take bytes, so many and no more (asyncio.Protocol)."""
        self._left -= len(data)
        if self._left < 0:
            self._end()
        else:
            super().data_received(data)

    def _end(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is no HTTP; aiohttp would write a traceback to the log for each."""
        log.debug("no HTTP: %r", exc)
        return _response(Answer(b"This is no request.\n", status=status))

    def connection_lost(self, exc: BaseException | None) -> None:
        """End (asyncio.BaseProtocol)."""
        if self._cut is not None:
            self._cut.cancel()
            self._cut = None
            self._closed()
        super().connection_lost(exc)


class Front:
    """Answers HTTP on sockets that listen.

    :param listeners: bound and listening; closed at the end
    :param pages: what is answered, by path
    """

    _server: web.Server
    _loop: asyncio.AbstractEventLoop

    def __init__(self, listeners: Sequence[Listener], pages: Mapping[str, Page]) -> None:
        self._listeners = listeners
        self._pages = pages
        self._open: set[socket.socket] = set()
        self._accepted = 0
        self._watching = False
        self._stopped = False
        self._second: asyncio.TimerHandle | None = None
        self._connecting: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin to answer, in the running loop."""
        self._loop = asyncio.get_running_loop()
        self._server = web.Server(self._answer)
        self._watch()

    async def stop(self) -> None:
        """Answer no more: what is open is closed."""
        self._stopped = True
        self._unwatch()
        if self._second is not None:
            self._second.cancel()
        for listener in self._listeners:
            listener.close()
        for task in self._connecting:
            task.cancel()
        await asyncio.gather(*self._connecting, return_exceptions=True)
        await self._server.shutdown(timeout=CLOSING_SECONDS)

    # -- accepting -----------------------------------------------------------------------------

    def _watch(self) -> None:
        may = len(self._open) < MOST and self._accepted < MOST_A_SECOND
        if may and not self._watching and not self._stopped:
            self._watching = True
            for listener in self._listeners:
                self._loop.add_reader(listener.sock, self._accept, listener)

    def _unwatch(self) -> None:
        if self._watching:
            self._watching = False
            for listener in self._listeners:
                self._loop.remove_reader(listener.sock)

    def _accept(self, listener: Listener) -> None:
        """Accept one; past what is allowed, the others wait in the kernel."""
        try:
            sock, _ = listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            # Nobody is answered until the next second; mail has the descriptors, if they are short.
            log.debug("cannot accept for HTTP: %s", error)
            self._accepted = MOST_A_SECOND
        else:
            self._open.add(sock)
            self._accepted += 1
            task = self._loop.create_task(self._connect(sock))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)
        if self._second is None:
            self._second = self._loop.call_later(1.0, self._next_second)
        if len(self._open) >= MOST or self._accepted >= MOST_A_SECOND:
            self._unwatch()

    async def _connect(self, sock: socket.socket) -> None:
        begun = False

        def begin() -> _Connection:
            nonlocal begun
            begun = True  # from here on the socket is the loop's
            return _Connection(
                self._server,
                partial(self._closed, sock),
                loop=self._loop,
                access_log=None,
                keepalive_timeout=LONGEST_SECONDS,
                lingering_time=0.0,
                max_line_size=MOST_BYTES,
                max_field_size=MOST_BYTES,
            )

        try:
            sock.setblocking(False)
            await self._loop.connect_accepted_socket(begin, sock)
        except OSError as error:
            log.debug("no HTTP: %s", error)
            self._closed(sock)
        finally:
            if not begun:
                sock.close()

    def _closed(self, sock: socket.socket) -> None:
        """Take note that a connection has ended."""
        self._open.discard(sock)
        self._watch()

    def _next_second(self) -> None:
        self._second = None
        self._accepted = 0
        self._watch()

    # -- answering -----------------------------------------------------------------------------

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        page = self._pages.get(request.path)
        if page is None:
            answer = Answer(b"There is no such page.\n", status=404)
        elif request.method not in {"GET", "HEAD"}:
            answer = Answer(b"GET and HEAD are all that there is.\n", status=405)
        else:
            try:
                answer = await page(request)
            except Exception:
                log.exception("the page %s failed", request.path)
                answer = Answer(b"This page failed; the log has the reason.\n", status=500)
        return _response(answer)


def _response(answer: Answer) -> web.Response:
    response = web.Response(
        body=answer.body,
        status=answer.status,
        headers={
            **HEADERS,
            "Content-Type": answer.content_type,
            "Content-Security-Policy": answer.policy,
        },
    )
    if answer.status == 405:  # noqa: PLR2004 - RFC 9110 15.5.6 wants it there
        response.headers["Allow"] = "GET, HEAD"
    response.force_close()
    return response
