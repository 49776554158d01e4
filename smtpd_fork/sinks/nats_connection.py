"""A connection to NATS with limits. It does not reconnect: after its end the sink makes a new one.

The module works around nats-py, which has no limit for the size of an answer, lets requests wait
after their connection is lost, and sends a password in plaintext to a server that does not offer
TLS even if the URL requires it.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self, TypeVar

from nats import errors
from nats.aio.client import Client
from nats.protocol.parser import Parser

from smtpd_fork.sanitizer import printable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping

    from nats.js import JetStreamContext

__all__ = ["ERRORS", "Connection", "Pieces", "reason_of", "size_of"]

LONGEST_ANSWER = 1 << 20
"""Maximum bytes of an answer; the settings of a stream have some thousand."""

CLOSE_SECONDS = 0.5

FLUSH_SECONDS = 0.1

ERRORS = (errors.Error, OSError, ValueError, TypeError, LookupError, AttributeError)
"""Exceptions of nats-py if a server is unreachable, refuses, or violates the protocol."""

T = TypeVar("T")


class BoundedParser(Parser):
    """A parser that turns all errors into a ProtocolError, and limits the size of a message."""

    async def parse(self, data: bytes = b"") -> None:
        """Parse bytes of the server.

        :raises ProtocolError: they are not valid, or a message is too long
        """
        try:
            await super().parse(data)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            raise errors.ProtocolError from None
        if len(self.buf) > LONGEST_ANSWER:
            raise errors.ProtocolError


class Pieces:
    """A payload in pieces, to which nats-py adds its protocol lines without a copy.

    It implements the operations of bytes that nats-py uses: the length, and ``+``.
    """

    def __init__(self, *parts: bytes) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __radd__(self, before: bytes) -> Pieces:
        return Pieces(bytes(before), *self.parts)

    def __add__(self, after: bytes) -> Pieces:
        return Pieces(*self.parts, after)


class _Client(Client):
    """A client that sends no credentials in plaintext if TLS is required, nor copies payloads."""

    async def _send_command(self, cmd: Any, priority: bool = False) -> None:
        if isinstance(cmd, Pieces):
            *first, cmd = cmd.parts
            self._pending += first
            self._pending_data_size += sum(map(len, first))
        await super()._send_command(cmd, priority)

    def _connect_command(self) -> bytes:
        transport: Any = self._transport
        tls = transport._io_writer.get_extra_info("sslcontext")  # noqa: SLF001 - nats-py has no public way
        if "tls" in self.options and not tls:
            raise errors.SecureConnWantedError
        command: bytes = super()._connect_command()
        return command


class Connection:
    """A connection. Use :meth:`open` to make it."""

    def __init__(self) -> None:
        self._client = _Client()
        self._client._ps = BoundedParser(self._client)  # noqa: SLF001 - nats-py has no public way
        self._lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._error: BaseException | None = None

    @classmethod
    async def open(cls, url: str, options: Mapping[str, Any]) -> Self:
        """Connect.

        :param options: arguments of nats-py's ``connect()``
        :raises OSError: the connection failed
        """
        made = cls()
        try:
            await made._client.connect(
                url,
                error_cb=made._note,
                closed_cb=made._closed,
                allow_reconnect=False,
                reconnect_time_wait=0,
                max_reconnect_attempts=1,  # 0 means no limit
                **options,
            )
        except BaseException as error:
            await made.close()
            if not isinstance(error, Exception):
                raise
            cause = made._error if isinstance(error, errors.NoServersError) else error
            raise OSError(reason_of(cause or error)) from None
        return made

    @property
    def largest(self) -> int:
        """The maximum bytes of a message with its header that the server accepts."""
        return int(self._client.max_payload)

    @property
    def usable(self) -> bool:
        """Whether the connection is open."""
        return not self._lost.done() and self._client.is_connected

    def stream(self, timeout: float) -> JetStreamContext:
        """Return a JetStream context of this connection.

        :param timeout: timeout of a request, in seconds
        """
        return self._client.jetstream(timeout=timeout)

    async def answer(self, request: Awaitable[T]) -> T:
        """Return the answer to a request of JetStream.

        :raises OSError: the connection was lost
        """
        task = asyncio.ensure_future(request)
        either: set[asyncio.Future[Any]] = {task, self._lost}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise OSError(reason_of(self._error or errors.ConnectionClosedError()))
            return task.result()
        finally:
            await _end(task)
            if self._lost.done():
                self._end_subscriptions()

    async def close(self) -> None:
        """Close the connection."""
        transport: Any = self._client._transport  # noqa: SLF001 - nats-py has no public way
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._client.close()  # never returns after a failed TLS handshake
        except TimeoutError:
            pass
        finally:
            writer = getattr(transport, "_bare_io_writer", None)
            if writer is not None:
                with suppress(AttributeError):  # raised by asyncio of 3.13 if it is closed already
                    writer.transport.abort()
            await self._closed()
            self._end_subscriptions()

    def _end_subscriptions(self) -> None:
        """Cancel tasks of requests that began while the connection was closed: nats-py does not."""
        for each in self._client._subs.values():  # noqa: SLF001 - nats-py has no public way
            task: asyncio.Task[None] | None = each._wait_for_msgs_task  # noqa: SLF001 - see above
            if task is not None:
                task.cancel()

    async def _note(self, error: Exception) -> None:
        self._error = error

    async def _closed(self) -> None:
        if not self._lost.done():
            self._lost.set_result(None)


async def _end(task: asyncio.Future[Any]) -> None:
    """Cancel a request repeatedly until it ends: nats-py ignores a cancellation in a flush."""
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=FLUSH_SECONDS)
    if not task.cancelled():
        task.exception()  # mark the exception as retrieved


def reason_of(error: BaseException) -> str:
    """Return the text of an error on one line."""
    return printable(f"{type(error).__name__}: {error}".strip(" :").replace("\n", " "))


def size_of(headers: Mapping[str, str]) -> int:
    """Return the size of a header in bytes, as NATS counts it."""
    return len(b"NATS/1.0\r\n\r\n") + sum(len(f"{k}: {v}\r\n") for k, v in headers.items())
