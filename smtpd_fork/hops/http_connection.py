"""HttpConnection: a persistent connection to an HTTP server, for one request at a time.

The parser of Node.js (llhttp, through httptools) reads the answers. The client of aiohttp took 60
us more CPU time per message, as much as all other work for a message.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple

try:
    import httptools
except ImportError:  # WebServer reports it
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
"""Bytes that are sent at a time: a fraction of a millisecond."""

MOST_HEAD_BYTES = 1 << 16
"""Maximum bytes of an answer's header; servers accept 8 KiB to 80 KiB in a request."""

CHUNK_BYTES = 16
"""Maximum bytes of chunk framing for each byte of the body; a chunk of one byte needs five. Without
a limit a server could send trailers and chunk extensions of any size."""

OK = 200

_LENGTHS = {b"content-length", b"transfer-encoding"}
"""Without these fields the answer ends with the connection (RFC 9112 6.3)."""


class HttpError(Exception):
    """No answer was received, or it is not HTTP. The text contains no secret."""


class AnswerTooLongError(HttpError):
    """The answer exceeds the maximum size."""


class ConnectionEndedError(HttpError):
    """The server has closed the connection, possibly an idle one, before it answered."""


class HttpAnswer(NamedTuple):
    """A complete answer."""

    status: int
    body: bytes


class HttpConnection(asyncio.Protocol):
    """A connection to an HTTP server.

    :param ended: called after the connection is lost or closed
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
        self._overhead = 0  # bytes that are not of the body
        self._in_body = self._has_answered = False
        self._has_length = False

    async def ask(self, head: bytes, body: Body, longest: int) -> HttpAnswer:
        """Send a request, and return the complete answer.

        :param body: the body, as bytes or in pieces
        :param longest: maximum bytes of the answer's body
        :raises HttpError: no answer was received, or it is not HTTP
        """
        if not self.usable:  # it was closed before anything was sent
            raise ConnectionEndedError("the server closed the connection")
        answer: asyncio.Future[HttpAnswer] = self._loop.create_future()
        self._answer = answer
        self._longest = self._room = longest
        self._overhead = 0
        self._has_answered = False
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
        """Send a body in pieces, with flow control; stop if the server answers before its end."""
        self._transport.write(head)
        for piece in body:
            await self._may_write.wait()
            if answer.done():
                self.usable = False
                return
            self._transport.write(piece)
            if len(piece) >= LARGE:
                # Yield to the loop: with a server that reads fast, write() never pauses.
                await asyncio.sleep(0)

    def close(self) -> None:
        """Close the connection immediately."""
        self.usable = False
        if self._transport is not None:
            self._transport.abort()

    def _begin(self) -> None:
        """Reset the state before an answer."""
        self._pieces = []
        self._in_body = self._has_length = False

    def _fail(self, error: HttpError) -> None:
        self.usable = False
        self._may_write.set()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)

    # -- callbacks of asyncio ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the transport."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Parse a part of the answer; close the connection on data without a request."""
        if self._answer is None or self._answer.done():
            self.close()
            return
        self._has_answered = True
        self._overhead += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(HttpError(f"{type(error).__name__}: the answer is not HTTP"))
        if self._overhead > MOST_HEAD_BYTES + CHUNK_BYTES * (self._longest - self._room):
            what = "answer's chunk framing has" if self._in_body else "answer's header has"
            self._fail(HttpError(f"the {what} more than {MOST_HEAD_BYTES} bytes"))

    def eof_received(self) -> None:
        """Complete or fail the answer; the transport closes afterwards."""
        self._end("the answer was cut off")

    def connection_lost(self, exc: Exception | None) -> None:
        """Complete or fail the answer, and call the callback."""
        self._end(f"the answer was cut off: {exc}" if exc else "the answer was cut off")
        self._parser = None  # break the reference cycle
        self._ended(self)

    def _end(self, reason: str) -> None:
        if self._in_body and not self._has_length:
            self.usable = False
            self.on_message_complete()
        if self._has_answered:
            self._fail(HttpError(reason))
        else:
            self._fail(ConnectionEndedError("the server closed the connection"))

    def pause_writing(self) -> None:
        """Stop sending the body: the server reads slowly."""
        self._may_write.clear()

    def resume_writing(self) -> None:
        """Continue sending."""
        self._may_write.set()

    # -- callbacks of httptools --------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Mark the connection as unusable if there is no request to answer."""
        if self._answer is None or self._answer.done():
            self.usable = False

    def on_header(self, name: bytes, _: bytes) -> None:
        """Note whether the header declares the length of the answer."""
        if name.lower() in _LENGTHS:
            self._has_length = True

    def on_headers_complete(self) -> None:
        """Note that the body begins, unless the answer is an interim one (1xx)."""
        self._in_body = self._parser.get_status_code() >= OK

    def on_body(self, piece: bytes) -> None:
        """Store a piece of the body."""
        self._room -= len(piece)
        self._overhead -= len(piece)
        if self._room < 0:
            self._fail(AnswerTooLongError(f"the answer has more than {self._longest} bytes"))
        else:
            self._pieces.append(piece)

    def on_message_complete(self) -> None:
        """Set the result; ignore an interim answer (RFC 9110 15.2)."""
        if not self._in_body or self._answer is None or self._answer.done():
            self._begin()
            return
        self.usable = self.usable and self._parser.should_keep_alive()
        self._may_write.set()
        status = self._parser.get_status_code()
        self._answer.set_result(HttpAnswer(status, b"".join(self._pieces)))
        self._begin()
