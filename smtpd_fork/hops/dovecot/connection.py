"""DovecotConnection: a :class:`Conversation` on a connection, with limits of time."""

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
"""Requests without an answer on one connection; Dovecot itself has no such limit."""

MOST_UNSENT = 1 << 20
"""Bytes that wait for a service that does not read."""

LAST_NUMBER = (1 << 31) - 1


class DovecotDownError(Exception):
    """Dovecot cannot be reached, breaks the protocol, or takes too long; the text says which."""


class DovecotLostError(DovecotDownError):
    """The connection was lost before an answer came."""


class DovecotBusyError(DovecotDownError):
    """Too many requests wait for an answer."""


class DovecotConnection(asyncio.Protocol):
    """A connection to Dovecot's authentication service. Make it with :meth:`to`.

    :ivar loop: in which it is
    :ivar down: why nothing can be asked on it any more; empty while it can
    :ivar retired: whether no request may begin on it: it is down, or old
    """

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.down = ""
        self.retired = False
        # Dovecot wants a process id that is unique. In containers that of each of them is 1.
        self.conversation = Conversation(random.randrange(1, LAST_NUMBER))  # noqa: S311 - no secret
        self._opened: asyncio.Future[None] = self.loop.create_future()
        self._open: set[int] = set()  # requests that have begun and not ended
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._numbers = itertools.cycle(range(1, LAST_NUMBER))
        self._heard = 0
        self._transport: Any = None

    @classmethod
    async def to(cls, address: HopAddress, seconds: float) -> Self:
        """Connect, and wait for the list of mechanisms.

        :param seconds: that all of this may take
        :raises DovecotDownError: the service cannot be reached, or is none
        """
        made = cls()
        try:
            async with asyncio.timeout(seconds):
                await made._connect(address)
                await made._opened
        except TimeoutError:
            made.fail(f"it did not begin within {seconds:g} s")
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
        """Whether some request on it has not ended."""
        return bool(self._open)

    def retire(self) -> None:
        """Close the connection, as soon as the requests on it have ended."""
        self.retired = True
        if not self._open:
            self.fail("retired")

    async def ask(self, number: int, line: bytes, seconds: float) -> Answer:
        """Send a line of a request, and return the answer.

        :param seconds: that the answer may take
        :raises DovecotDownError: there is none
        """
        if self.down:
            raise DovecotLostError(self.down)
        unsent = self._transport.get_write_buffer_size()
        if len(self._waiting) >= MOST_REQUESTS or unsent > MOST_UNSENT:
            raise DovecotBusyError("too many requests wait for an answer")
        self._open.add(number)
        waiter = self._waiting[number] = self.loop.create_future()
        heard = self._heard
        self._transport.write(line)
        try:
            async with asyncio.timeout(seconds):
                answer: Answer = await waiter
        except TimeoutError:
            reason = f"no answer within {seconds:g} s"
            if self._heard == heard:  # nor to any other request: the service hangs
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
        """Have the service forget a request, if it has not ended."""
        if not self.down and number in self._open:
            self._transport.write(cancel(number))
        self._end(number)

    def _end(self, number: int) -> None:
        self._open.discard(number)
        if self.retired and not self._open:
            self.fail("retired")

    # -- asyncio's calls ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say what is spoken."""
        self._transport = transport
        self._transport.write(self.conversation.greeting)

    def data_received(self, data: bytes) -> None:
        """Take what the service says."""
        self._heard += 1
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
        """Take note of the end."""
        self.fail("it closed the connection")

    def fail(self, reason: str) -> None:
        """End the connection; who waits for an answer learns that there will be none."""
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
