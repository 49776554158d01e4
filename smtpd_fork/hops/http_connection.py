"""HttpConnection: a connection to an HTTP server, on which one request follows the other.

The parser of Node.js (llhttp, by httptools) reads the answers. The client of aiohttp took 60 us of
processor time a message more: as much as all else that a message costs here.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple

try:
    import httptools
except ImportError:  # WebServer says so
    INSTALLED = False
else:
    INSTALLED = True

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Body = bytes | Iterable[bytes | memoryview]

__all__ = [
    "INSTALLED", "LARGE", "AnswerTooLongError", "ConnectionEndedError", "HttpAnswer",
    "HttpConnection", "HttpError",
]  # fmt: skip

LARGE = 1 << 18
"""Bytes that are sent at once: a fraction of a millisecond."""

MOST_HEAD_BYTES = 1 << 16
"""Of the header of an answer; servers take 8 KiB to 80 KiB of a request's."""

CHUNK_BYTES = 16
"""Of an answer besides its body, for each byte of that: a chunk of one byte takes five more. What
is behind the last chunk, or is an extension of one, could be as large as a server likes."""

OK = 200

_LENGTHS = {b"content-length", b"transfer-encoding"}
"""Fields without which the end of the connection is that of the answer (RFC 9112 6.3)."""


class HttpError(Exception):
    """There is no answer, or none that is HTTP; the text says why, and shows no secret."""


class AnswerTooLongError(HttpError):
    """The answer is longer than it may be."""


class ConnectionEndedError(HttpError):
    """The server has ended the connection before it answered: an idle one, perhaps."""


class HttpAnswer(NamedTuple):
    """An answer, read to its end."""

    status: int
    body: bytes


class HttpConnection(asyncio.Protocol):
    """A connection to an HTTP server.

    :param ended: is called once it is lost or closed
    :ivar usable: whether another request may be sent
    """

    def __init__(self, ended: Callable[[HttpConnection], object]) -> None:
        self.usable = True
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._transport: Any = None
        self._parser: Any = httptools.HttpResponseParser(self)
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._answer: asyncio.Future[HttpAnswer] | None = None
        self._pieces: list[bytes] = []
        self._longest = self._room = 0
        self._besides = 0  # bytes that were no body
        self._in_body = self._heard = False
        self._has_length = False

    async def ask(self, head: bytes, body: Body, longest: int) -> HttpAnswer:
        """Send a request, and return the answer, read to its end.

        :param body: bytes, or pieces of them
        :param longest: bytes of the answer's body
        :raises HttpError: there is none, or none that is HTTP
        """
        if not self.usable:  # it has ended before anything was sent
            raise ConnectionEndedError("the server ended the connection")
        answer: asyncio.Future[HttpAnswer] = self._loop.create_future()
        self._answer = answer
        self._longest = self._room = longest
        self._besides = 0
        self._heard = False
        self._begin()
        try:
            if isinstance(body, bytes):
                self._transport.write(head + body)
            else:
                await self._send(head, body, answer)
            return await answer
        except BaseException:
            self.usable = False
            raise
        finally:
            self._answer = None
            if not self.usable:
                self.close()

    async def _send(
        self, head: bytes, body: Iterable[bytes | memoryview], answer: asyncio.Future[Any]
    ) -> None:
        """Send a body in pieces, as the server reads them, unless it answers before the end."""
        self._transport.write(head)
        for piece in body:
            await self._may_write.wait()
            if answer.done():
                self.usable = False
                return
            self._transport.write(piece)
            if len(piece) >= LARGE:
                # To a server that reads as fast as we send, nothing else would wait.
                await asyncio.sleep(0)

    def close(self) -> None:
        """End it at once."""
        self.usable = False
        if self._transport is not None:
            self._transport.abort()

    def _begin(self) -> None:
        """Begin to read an answer."""
        self._pieces = []
        self._in_body = self._has_length = False

    def _fail(self, error: HttpError) -> None:
        self.usable = False
        self._may_write.set()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)

    # -- asyncio's calls ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Take a part of the answer; what nobody asked for ends the connection."""
        if self._answer is None or self._answer.done():
            self.close()
            return
        self._heard = True
        self._besides += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(HttpError(f"{type(error).__name__}: the answer is not HTTP"))
        if self._besides > MOST_HEAD_BYTES + CHUNK_BYTES * (self._longest - self._room):
            what = "answer has, besides its body," if self._in_body else "answer's header has"
            self._fail(HttpError(f"the {what} more than {MOST_HEAD_BYTES} bytes"))

    def eof_received(self) -> None:
        """Take note of the end; the transport closes."""
        self._end("the answer was cut off")

    def connection_lost(self, exc: Exception | None) -> None:
        """Take note of the end."""
        self._end(f"the answer was cut off: {exc}" if exc else "the answer was cut off")
        self._parser = None  # it has this object
        self._ended(self)

    def _end(self, reason: str) -> None:
        if self._in_body and not self._has_length:
            self.usable = False
            self.on_message_complete()
        if self._heard:
            self._fail(HttpError(reason))
        else:
            self._fail(ConnectionEndedError("the server ended the connection"))

    def pause_writing(self) -> None:
        """Send nothing more of the body: the server is slow to read."""
        self._may_write.clear()

    def resume_writing(self) -> None:
        """Go on sending."""
        self._may_write.set()

    # -- httptools's calls -------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """See that it is the answer to a request."""
        if self._answer is None or self._answer.done():
            self.usable = False

    def on_header(self, name: bytes, _: bytes) -> None:
        """See whether the header says where the answer ends."""
        if name.lower() in _LENGTHS:
            self._has_length = True

    def on_headers_complete(self) -> None:
        """Take note that the body begins; there is none of a provisional answer."""
        self._in_body = self._parser.get_status_code() >= OK

    def on_body(self, piece: bytes) -> None:
        """Keep a piece of the body."""
        self._room -= len(piece)
        self._besides -= len(piece)
        if self._room < 0:
            self._fail(AnswerTooLongError(f"the answer has more than {self._longest} bytes"))
        else:
            self._pieces.append(piece)

    def on_message_complete(self) -> None:
        """Return the answer; a provisional one is forgotten (RFC 9110 15.2)."""
        if not self._in_body or self._answer is None or self._answer.done():
            self._begin()
            return
        self.usable = self.usable and self._parser.should_keep_alive()
        self._may_write.set()
        status = self._parser.get_status_code()
        self._answer.set_result(HttpAnswer(status, b"".join(self._pieces)))
        self._begin()
