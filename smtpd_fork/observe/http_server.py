"""An HTTP server for a few pages and a few clients, in the event loop that serves mail.

aiohttp reads and writes HTTP. What it does not limit is limited here, so that no client holds up
mail: connections at once, new ones a second (the rest wait in the kernel's backlog), and the bytes
and seconds of each. A connection gets one answer. Clients that are slow to send a request, or to
read the answer, do not hold up others: a new one gets the slot of the one that is idle longest.
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

MOST = 16
"""Connections at once: a Prometheus or two, a load balancer, a few people."""

MOST_OF_ONE = 8
"""Connections of one client that may be idle: half of all."""

IDLE_SECONDS = 0.25
"""A connection is idle once it has waited for its client that long; then it may be ended for a new
one."""

MOST_A_SECOND = 50
"""Connections that are accepted in a second: one costs about a millisecond."""

REQUEST_SECONDS = 2.0
"""Time for a request: Prometheus and browsers send it in their first packet."""

LONGEST_SECONDS = 10.0
"""Time for a connection; the scrape_timeout of Prometheus is 10 s."""

MOST_BYTES = 16 * 1024
"""Bytes of a client in all; a browser's request has one or two KiB."""

CLOSING_SECONDS = 0.1
"""Time for answers in progress at the end; to aiohttp 0 means no limit."""

HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Server": "smtpd-fork",
}
"""Of every answer."""

NO_SCRIPT = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
"""The Content-Security-Policy of answers that are not HTML."""


class Answer(NamedTuple):
    """An answer.

    :ivar policy: its Content-Security-Policy
    """

    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    status: int = 200
    policy: str = NO_SCRIPT


class _Connection(web.RequestHandler):
    """A connection with limits of bytes and time.

    :param client: the client's address; empty on a unix socket
    :param closed: called once, at the end
    :ivar waits_since: since when it waits for the client; infinite while an answer is made
    """

    def __init__(
        self, server: web.Server, client: str, closed: Callable[[_Connection], None], **options: Any
    ) -> None:
        super().__init__(server, **options)
        self.client = client
        self.waits_since = self._loop.time()
        self._closed = closed
        self._left = MOST_BYTES
        self._began = 0.0
        self._cut: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin (asyncio.BaseProtocol)."""
        self._began = self._loop.time()
        self._cut = self._loop.call_later(min(REQUEST_SECONDS, LONGEST_SECONDS), self.end)
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Take bytes up to the limit (asyncio.Protocol)."""
        self._left -= len(data)
        if self._left < 0:
            self.end()
        else:
            super().data_received(data)

    def answering(self) -> None:
        """Start the time of the answer: the request is complete."""
        self.waits_since = math.inf
        if self._cut is not None:
            self._cut.cancel()
            self._cut = self._loop.call_at(self._began + LONGEST_SECONDS, self.end)

    def answered(self) -> None:
        """Wait for the client again, to read the answer."""
        self.waits_since = self._loop.time()

    def end(self) -> None:
        """Close at once."""
        if self.transport is not None:
            self.transport.abort()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer a malformed request; aiohttp would log a traceback for each."""
        log.debug("no HTTP: %r", exc)
        return _response(Answer(b"This is no request.\n", status=status))

    def connection_lost(self, exc: BaseException | None) -> None:
        """End (asyncio.BaseProtocol)."""
        if self._cut is not None:
            self._cut.cancel()
            self._cut = None
        self._closed(self)
        super().connection_lost(exc)


class HttpServer:
    """Answers HTTP in the running loop, from its construction on.

    :param listeners: bound and listening; closed at the end
    :param pages: the functions that answer, by path
    """

    def __init__(self, listeners: Sequence[Listener], pages: Mapping[str, Page]) -> None:
        self._loop = asyncio.get_running_loop()
        self._server = web.Server(self._answer)
        self._listeners = listeners
        self._pages = pages
        self._open: dict[_Connection, None] = {}
        """In the order of their arrival."""
        self._accepted = 0
        self._watching = False
        self._stopped = False
        self._second: asyncio.TimerHandle | None = None
        self._connecting: set[asyncio.Task[None]] = set()
        self._watch()

    async def stop(self) -> None:
        """Close the listeners and all connections."""
        self._stopped = True
        self._unwatch()
        if self._second is not None:
            self._second.cancel()
        for listener in self._listeners:
            listener.close()
        await asyncio.gather(*self._connecting)
        await self._server.shutdown(timeout=CLOSING_SECONDS)

    # -- accepting -----------------------------------------------------------------------------

    def _watch(self) -> None:
        if self._may_accept and not self._watching and not self._stopped:
            self._watching = True
            for listener in self._listeners:
                self._loop.add_reader(listener.sock, self._accept, listener)

    def _unwatch(self) -> None:
        if self._watching:
            self._watching = False
            for listener in self._listeners:
                self._loop.remove_reader(listener.sock)

    @property
    def _may_accept(self) -> bool:
        return (len(self._open) < MOST or bool(self._idle())) and self._accepted < MOST_A_SECOND

    def _idle(self) -> list[_Connection]:
        """Return the connections that are idle, the one that has been so longest first."""
        latest = self._loop.time() - IDLE_SECONDS
        idle = [each for each in self._open if each.waits_since <= latest]
        return sorted(idle, key=attrgetter("waits_since"))

    def _accept(self, listener: Listener) -> None:
        """Accept one connection; beyond the limits the others wait in the kernel."""
        try:
            sock, peer = listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            # No more until the next second: if descriptors are short, mail comes first.
            log.debug("cannot accept for HTTP: %s", error)
            self._accepted = MOST_A_SECOND
        else:
            self._accepted += 1
            self._begin(sock, host_of(peer) or "")
        if self._second is None:
            self._second = self._loop.call_later(1.0, self._next_second)
        if not self._may_accept:
            self._unwatch()
            self._loop.call_later(IDLE_SECONDS, self._watch)  # one may be idle by then

    def _begin(self, sock: socket.socket, client: str) -> None:
        self._make_room(client)
        connection = _Connection(
            self._server,
            client,
            self._closed,
            loop=self._loop,
            access_log=None,
            keepalive_timeout=LONGEST_SECONDS,
            lingering_time=0.0,
            max_line_size=MOST_BYTES,
            max_field_size=MOST_BYTES,
        )
        self._open[connection] = None
        task = self._loop.create_task(self._connect(connection, sock))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    def _make_room(self, client: str) -> None:
        """End the connection that is idle longest, if *client* or all clients have too many."""
        idle = self._idle()
        of_client = [each for each in idle if each.client == client]
        for connection in of_client[: max(0, len(of_client) + 1 - MOST_OF_ONE)]:
            self._end(connection)
        if len(self._open) >= MOST and idle:
            count = Counter(each.client for each in idle)
            self._end(max(idle, key=lambda each: count[each.client]))  # the first of those

    def _end(self, connection: _Connection) -> None:
        self._open.pop(connection, None)  # now: connection_lost comes in the loop's next turn
        connection.end()

    async def _connect(self, connection: _Connection, sock: socket.socket) -> None:
        sock.setblocking(False)
        try:
            await self._loop.connect_accepted_socket(lambda: connection, sock)
        except OSError as error:
            log.debug("no HTTP: %s", error)
            sock.close()
            self._closed(connection)
        if connection not in self._open:
            connection.end()  # it was to end before it had a transport

    def _closed(self, connection: _Connection) -> None:
        """Forget a connection that has ended."""
        self._open.pop(connection, None)
        self._watch()

    def _next_second(self) -> None:
        self._second = None
        self._accepted = 0
        self._watch()

    # -- answering -----------------------------------------------------------------------------

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        connection = request.protocol
        assert isinstance(connection, _Connection)
        connection.answering()
        try:
            return _response(await self._find(request))
        finally:
            connection.answered()

    async def _find(self, request: web.BaseRequest) -> Answer:
        page = self._pages.get(request.path)
        if page is None:
            return Answer(b"There is no such page.\n", status=404)
        if request.method not in {"GET", "HEAD"}:
            return Answer(b"GET and HEAD are all that there is.\n", status=405)
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
    if answer.status == 405:  # noqa: PLR2004 - RFC 9110 15.5.6 wants it there
        response.headers["Allow"] = "GET, HEAD"
    response.force_close()
    return response
