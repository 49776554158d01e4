"""DovecotConnection: a :class:`Conversation` on a connection, with timeouts."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
from typing import TYPE_CHECKING, Any, Self

from smtpd_fork.hops.dovecot.conversation import (
    Answer,
    Conversation,
    DovecotGarbageError,
    Kind,
    cancel,
)

if TYPE_CHECKING:
    from smtpd_fork.hops.address import HopAddress

__all__ = ["DovecotBusyError", "DovecotConnection", "DovecotDownError", "DovecotLostError"]

MOST_REQUESTS = 1000
"""Maximum requests without an answer on one connection; Dovecot itself has no such limit."""

MOST_UNSENT = 1 << 20
"""Maximum bytes in the write buffer, for a service that does not read."""

LAST_NUMBER = (1 << 31) - 1


class DovecotDownError(Exception):
    """Dovecot cannot be reached, violates the protocol, or exceeds a timeout."""


class DovecotLostError(DovecotDownError):
    """The connection was lost before an answer was received."""


class DovecotBusyError(DovecotDownError):
    """Too many requests wait for an answer."""


class DovecotConnection(asyncio.Protocol):
    """A connection to Dovecot's authentication service. Use :meth:`to` to make it.

    :ivar loop: the event loop of the connection
    :ivar down: why the connection has ended; empty while it is open
    :ivar retired: whether no new request may begin: the connection has ended, or is old
    """

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.down = ""
        self.retired = False
        # Dovecot requires a unique process ID, but in each container the process ID is 1.
        self.conversation = Conversation(random.randrange(1, LAST_NUMBER))  # noqa: S311 - no secret
        self._opened: asyncio.Future[None] = self.loop.create_future()
        self._open: set[int] = set()  # requests in progress
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._numbers = itertools.cycle(range(1, LAST_NUMBER))
        self._answers_received = 0
        self._transport: Any = None

    @classmethod
    async def to(cls, address: HopAddress, seconds: float) -> Self:
        """Connect, and wait for the list of mechanisms.

        :param seconds: timeout of both together
        :raises DovecotDownError: the service cannot be reached, or violates the protocol
        """
        made = cls()
        try:
            async with asyncio.timeout(seconds):
                await made._connect(address)
                await made._opened
        except TimeoutError:
            made.fail(f"no list of mechanisms within {seconds:g} s")
        except OSError as error:
            made.fail(os.strerror(error.errno) if error.errno and error.errno > 0 else str(error))
        except BaseException:
            made.fail("given up")
            raise
        if made.down:
            raise DovecotDownError(made.down)
        return made

    async def _connect(self, address: HopAddress) -> None:
        if address.path:
            await self.loop.create_unix_connection(lambda: self, address.path)
        else:
            await self.loop.create_connection(lambda: self, address.host, address.port)

    def number(self) -> int:
        """Return a number for a new request."""
        return next(self._numbers)

    @property
    def busy(self) -> bool:
        """Whether a request is in progress."""
        return bool(self._open)

    def retire(self) -> None:
        """Close the connection when all its requests have ended."""
        self.retired = True
        if not self._open:
            self.fail("retired")

    async def ask(self, number: int, line: bytes, seconds: float) -> Answer:
        """Send a line of a request, and return the answer.

        :param seconds: timeout of the answer
        :raises DovecotDownError: no answer was received
        """
        if self.down:
            raise DovecotLostError(self.down)
        unsent = self._transport.get_write_buffer_size()
        if len(self._waiting) >= MOST_REQUESTS or unsent > MOST_UNSENT:
            raise DovecotBusyError("too many requests wait for an answer")
        self._open.add(number)
        waiter = self._waiting[number] = self.loop.create_future()
        before = self._answers_received
        self._transport.write(line)
        try:
            async with asyncio.timeout(seconds):
                answer: Answer = await waiter
        except TimeoutError:
            reason = f"no answer within {seconds:g} s"
            # Without an answer to any other request either, the service hangs.
            if self._answers_received == before:
                self.fail(reason)
            else:
                self.cancel(number)
            raise DovecotDownError(reason) from None
        except BaseException:
            self.cancel(number)
            raise
        finally:
            self._waiting.pop(number, None)
        if answer.kind is not Kind.CONTINUE:
            self._end(number)
        return answer

    def cancel(self, number: int) -> None:
        """Cancel a request if it is in progress."""
        if not self.down and number in self._open:
            self._transport.write(cancel(number))
        self._end(number)

    def _end(self, number: int) -> None:
        self._open.discard(number)
        if self.retired and not self._open:
            self.fail("retired")

    # -- callbacks of asyncio ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the version of the protocol and the process ID."""
        self._transport = transport
        self._transport.write(self.conversation.greeting)

    def data_received(self, data: bytes) -> None:
        """Pass each answer to the waiting request."""
        self._answers_received += 1
        try:
            for number, answer in self.conversation.receive(data):
                waiter = self._waiting.pop(number, None)
                if waiter is not None and not waiter.done():
                    waiter.set_result(answer)
        except DovecotGarbageError as error:
            self.fail(str(error))
        if self.conversation.ready and not self._opened.done():
            self._opened.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail all requests in progress."""
        self.fail("it closed the connection")

    def fail(self, reason: str) -> None:
        """Close the connection; raise DovecotLostError in all tasks that wait for an answer."""
        if self.down:
            return
        self.down, self.retired = reason, True
        if not self._opened.done():
            self._opened.set_result(None)
        for waiter in self._waiting.values():
            if not waiter.done():
                waiter.set_exception(DovecotLostError(reason))
        self._waiting.clear()
        if self._transport is not None:
            self._transport.abort()
