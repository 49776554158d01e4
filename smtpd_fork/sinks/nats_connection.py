"""One connection to NATS: bounded, and never renewed by itself; after its end there is another one.

nats-py has no limit for an answer, keeps requests waiting when their connection is lost, and sends
a password in plaintext to a server that does not offer TLS, whatever the URL says.
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
"""Bytes; a stream's settings have some thousand."""

CLOSE_SECONDS = 0.5

FLUSH_SECONDS = 0.1

ERRORS = (errors.Error, OSError, ValueError, TypeError, LookupError, AttributeError)
"""What nats-py raises for a server that is away, refuses, or sends garbage."""

T = TypeVar("T")


class BoundedParser(Parser):
    """Reads what a server sends; an error of any kind is one of the protocol."""

    async def parse(self, data: bytes = b"") -> None:
        """Read some bytes.

        :raises ProtocolError: they are not NATS's, or the message is too long
        """
        try:
            await super().parse(data)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            raise errors.ProtocolError from None
        if len(self.buf) > LONGEST_ANSWER:
            raise errors.ProtocolError


class Pieces:
    """A payload in pieces, which nats-py puts its lines around without a copy.

    It has what nats-py asks of bytes: the length, and ``+``.
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
    """A client that sends nothing in plaintext if it is to use TLS, and copies no payload."""

    async def _send_command(self, cmd: Any, priority: bool = False) -> None:
        if isinstance(cmd, Pieces):
            *first, cmd = cmd.parts
            self._pending += first
            self._pending_data_size += sum(map(len, first))
        await super()._send_command(cmd, priority)

    def _connect_command(self) -> bytes:
        transport: Any = self._transport
        tls = transport._io_writer.get_extra_info("sslcontext")  # noqa: SLF001 - there is no other way
        if "tls" in self.options and not tls:
            raise errors.SecureConnWantedError
        command: bytes = super()._connect_command()
        return command


class Connection:
    """A connection. Make it with :meth:`open`.

    :ivar largest: bytes of a message with its header
    """

    def __init__(self) -> None:
        self._client = _Client()
        self._client._ps = BoundedParser(self._client)  # noqa: SLF001 - there is no other way
        self._lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._error: BaseException | None = None

    @classmethod
    async def open(cls, url: str, options: Mapping[str, Any]) -> Self:
        """Connect.

        :param options: of nats-py's ``connect()``
        :raises OSError: there is no connection
        """
        made = cls()
        try:
            await made._client.connect(
                url,
                error_cb=made._note,
                closed_cb=made._closed,
                allow_reconnect=False,
                reconnect_time_wait=0,
                max_reconnect_attempts=1,  # 0 is for ever
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
        """The most that the server takes, in bytes."""
        return int(self._client.max_payload)

    @property
    def usable(self) -> bool:
        """Whether the connection is there."""
        return not self._lost.done() and self._client.is_connected

    def stream(self, timeout: float) -> JetStreamContext:
        """Return JetStream over this connection.

        :param timeout: seconds for a request
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
        transport: Any = self._client._transport  # noqa: SLF001 - there is no other way
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._client.close()  # waits for ever after a failed TLS handshake
        except TimeoutError:
            pass
        finally:
            writer = getattr(transport, "_bare_io_writer", None)
            if writer is not None:
                with suppress(AttributeError):  # of asyncio (3.13), if it has ended already
                    writer.transport.abort()
            await self._closed()
            self._end_subscriptions()

    def _end_subscriptions(self) -> None:
        """End what a request has begun while the connection was closed; nats-py forgets it."""
        for each in self._client._subs.values():  # noqa: SLF001 - there is no other way
            task: asyncio.Task[None] | None = each._wait_for_msgs_task  # noqa: SLF001 - see above
            if task is not None:
                task.cancel()

    async def _note(self, error: Exception) -> None:
        self._error = error

    async def _closed(self) -> None:
        if not self._lost.done():
            self._lost.set_result(None)


async def _end(task: asyncio.Future[Any]) -> None:
    """Cancel a request until it ends: nats-py ignores it while it flushes."""
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=FLUSH_SECONDS)
    if not task.cancelled():
        task.exception()  # nobody else asks


def reason_of(error: BaseException) -> str:
    """Return the text of an error."""
    return printable(f"{type(error).__name__}: {error}".strip(" :").replace("\n", " "))


def size_of(headers: Mapping[str, str]) -> int:
    """Return the bytes of a header as NATS counts them."""
    return len(b"NATS/1.0\r\n\r\n") + sum(len(f"{k}: {v}\r\n") for k, v in headers.items())
