"""HttpServer: serves a few pages to a few clients, in the event loop that serves mail.

aiohttp reads and writes HTTP. This module adds limits, so that HTTP clients cannot delay mail: the
number of connections, of new connections per second (others wait in the kernel's backlog), and the
bytes and the time of each connection. A connection gets one answer. Clients that send a request
slowly, or read the answer slowly, do not block others: when all connections are in use, a new one
replaces the one that has been idle for the longest time.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from aiohttp import web

from smtpd_fork.peer_address import host_of

if TYPE_CHECKING:
    from smtpd_fork.listeners import Listener

    Page = Callable[[web.BaseRequest], Awaitable["Answer"]]

__all__ = ["Answer", "HttpServer"]

log = logging.getLogger("smtpd_fork.observe")

MAX_CONNECTIONS = 16
"""Maximum concurrent connections: for one or two Prometheus servers, a load balancer, and a few
browsers."""

MAX_IDLE_PER_CLIENT = 8
"""Maximum idle connections of one client: half of all connections."""

IDLE_SECONDS = 0.25
"""A connection is idle when it has waited for its client for that time; then it may be ended for a
new one."""

MAX_ACCEPTED_PER_SECOND = 50
"""Maximum connections accepted per second: each takes about a millisecond."""

REQUEST_SECONDS = 2.0
"""Time limit for receiving a request: Prometheus and browsers send it in their first packet."""

MAX_SECONDS = 10.0
"""Time limit for a connection; the default scrape_timeout of Prometheus is 10 s."""

MAX_BYTES = 16 * 1024
"""Maximum bytes received on a connection; a browser's request has one or two KiB."""

CLOSING_SECONDS = 0.1
"""Time limit for answers in progress at a stop; for aiohttp 0 would mean no limit."""

HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Server": "smtpd-fork",
}
"""Header fields of every answer."""

NO_SCRIPT = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
"""The Content-Security-Policy of answers that are not HTML."""


class Answer(NamedTuple):
    """An HTTP response.

    :ivar policy: its Content-Security-Policy
    """

    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    status: int = 200
    policy: str = NO_SCRIPT


class _Connection(web.RequestHandler):
    """A connection with limits of bytes and time.

    :param client: the client's address; empty on a unix socket
    :param on_closed: called once, when the connection is closed
    :ivar waiting_since: time since which it waits for the client; infinite while a page is created
    """

    def __init__(
        self,
        server: web.Server,
        client: str,
        on_closed: Callable[[_Connection], None],
        **options: Any,
    ) -> None:
        super().__init__(server, **options)
        self.client = client
        self.waiting_since = self._loop.time()
        self._on_closed = on_closed
        self._bytes_left = MAX_BYTES
        self._began = 0.0
        self._cut: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the time limits (asyncio.BaseProtocol)."""
        self._began = self._loop.time()
        self._cut = self._loop.call_later(min(REQUEST_SECONDS, MAX_SECONDS), self.end)
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Receive bytes up to the limit (asyncio.Protocol)."""
        self._bytes_left -= len(data)
        if self._bytes_left < 0:
            self.end()
        else:
            super().data_received(data)

    def answering(self) -> None:
        """Replace the time limit of the request, which is complete, by that of the connection."""
        self.waiting_since = math.inf
        if self._cut is not None:
            self._cut.cancel()
            self._cut = self._loop.call_at(self._began + MAX_SECONDS, self.end)

    def answered(self) -> None:
        """Wait for the client to read the answer."""
        self.waiting_since = self._loop.time()

    def end(self) -> None:
        """Close the connection immediately."""
        if self.transport is not None:
            self.transport.abort()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer a malformed request, without the traceback that aiohttp would log."""
        log.debug("invalid HTTP request: %r", exc)
        return _response(Answer(b"This is not a valid HTTP request.\n", status=status))

    def connection_lost(self, exc: BaseException | None) -> None:
        """Handle the end of the connection (asyncio.BaseProtocol)."""
        if self._cut is not None:
            self._cut.cancel()
            self._cut = None
        self._on_closed(self)
        super().connection_lost(exc)


class HttpServer:
    """Answers HTTP requests in the running event loop, from its creation until :meth:`stop`.

    :param listeners: bound and listening; :meth:`stop` closes them
    :param pages: the function for each path
    """

    def __init__(self, listeners: Sequence[Listener], pages: Mapping[str, Page]) -> None:
        self._loop = asyncio.get_running_loop()
        self._server = web.Server(self._answer)
        self._listeners = listeners
        self._pages = pages
        self._open: dict[_Connection, None] = {}
        """The open connections in the order of their arrival."""
        self._accepted = 0
        self._accepting = False
        self._stopped = False
        self._second_timer: asyncio.TimerHandle | None = None
        self._connecting: set[asyncio.Task[None]] = set()
        self._start_accepting()

    async def stop(self) -> None:
        """Close the listeners and all connections."""
        self._stopped = True
        self._pause_accepting()
        if self._second_timer is not None:
            self._second_timer.cancel()
        for listener in self._listeners:
            listener.close()
        await asyncio.gather(*self._connecting)
        await self._server.shutdown(timeout=CLOSING_SECONDS)

    # -- accepting -----------------------------------------------------------------------------

    def _start_accepting(self) -> None:
        if self._may_accept and not self._accepting and not self._stopped:
            self._accepting = True
            for listener in self._listeners:
                self._loop.add_reader(listener.sock, self._accept, listener)

    def _pause_accepting(self) -> None:
        if self._accepting:
            self._accepting = False
            for listener in self._listeners:
                self._loop.remove_reader(listener.sock)

    @property
    def _may_accept(self) -> bool:
        return (
            len(self._open) < MAX_CONNECTIONS or bool(self._idle())
        ) and self._accepted < MAX_ACCEPTED_PER_SECOND

    def _idle(self) -> list[_Connection]:
        """Return the idle connections, first the one that has been idle for the longest time."""
        latest = self._loop.time() - IDLE_SECONDS
        idle = [each for each in self._open if each.waiting_since <= latest]
        return sorted(idle, key=attrgetter("waiting_since"))

    def _accept(self, listener: Listener) -> None:
        """Accept one connection; while a limit is reached, others wait in the kernel's backlog."""
        try:
            sock, peer = listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            # Pause until the next second: if few descriptors are free, sessions need them.
            log.debug("cannot accept for HTTP: %s", error)
            self._accepted = MAX_ACCEPTED_PER_SECOND
        else:
            self._accepted += 1
            self._begin(sock, host_of(peer) or "")
        if self._second_timer is None:
            self._second_timer = self._loop.call_later(1.0, self._next_second)
        if not self._may_accept:
            self._pause_accepting()
            # A connection may be idle by then.
            self._loop.call_later(IDLE_SECONDS, self._start_accepting)

    def _begin(self, sock: socket.socket, client: str) -> None:
        self._end_idle_connections(client)
        connection = _Connection(
            self._server,
            client,
            self._on_closed,
            loop=self._loop,
            access_log=None,
            keepalive_timeout=MAX_SECONDS,
            lingering_time=0.0,
            max_line_size=MAX_BYTES,
            max_field_size=MAX_BYTES,
        )
        self._open[connection] = None
        task = self._loop.create_task(self._connect(connection, sock))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    def _end_idle_connections(self, client: str) -> None:
        """End idle connections, if *client* or all clients together have too many."""
        idle = self._idle()
        of_client = [each for each in idle if each.client == client]
        for connection in of_client[: max(0, len(of_client) + 1 - MAX_IDLE_PER_CLIENT)]:
            self._end(connection)
        if len(self._open) >= MAX_CONNECTIONS and idle:
            count = Counter(each.client for each in idle)
            # Of the client with the most idle connections, the one that is idle longest.
            self._end(max(idle, key=lambda each: count[each.client]))

    def _end(self, connection: _Connection) -> None:
        self._open.pop(connection, None)  # connection_lost() is called later, by the event loop
        connection.end()

    async def _connect(self, connection: _Connection, sock: socket.socket) -> None:
        sock.setblocking(False)
        try:
            await self._loop.connect_accepted_socket(lambda: connection, sock)
        except OSError as error:
            log.debug("cannot begin an HTTP connection: %s", error)
            sock.close()
            self._on_closed(connection)
        if connection not in self._open:
            connection.end()  # it was ended before it had a transport

    def _on_closed(self, connection: _Connection) -> None:
        """Remove a closed connection, and accept another one if accepting was paused."""
        self._open.pop(connection, None)
        self._start_accepting()

    def _next_second(self) -> None:
        self._second_timer = None
        self._accepted = 0
        self._start_accepting()

    # -- answering -----------------------------------------------------------------------------

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        connection = request.protocol
        assert isinstance(connection, _Connection)
        connection.answering()
        try:
            return _response(await self._call_page(request))
        finally:
            connection.answered()

    async def _call_page(self, request: web.BaseRequest) -> Answer:
        page = self._pages.get(request.path)
        if page is None:
            return Answer(b"There is no such page.\n", status=404)
        if request.method not in {"GET", "HEAD"}:
            return Answer(b"Only GET and HEAD are supported.\n", status=405)
        try:
            return await page(request)
        except Exception:
            log.exception("the page %s failed", request.path)
            return Answer(b"This page failed; the log has the reason.\n", status=500)


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
    if answer.status == 405:  # noqa: PLR2004 - RFC 9110 15.5.6 requires the field
        response.headers["Allow"] = "GET, HEAD"
    response.force_close()
    return response
