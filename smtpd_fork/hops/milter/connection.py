"""MilterConnection: a :class:`Conversation` on a connection, with limits of time."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING, Any, Self

from smtpd_fork.hops.milter.conversation import Conversation, State

if TYPE_CHECKING:
    from collections.abc import Iterable

    from smtpd_fork.hops.address import HopAddress
    from smtpd_fork.hops.milter.events import Step

__all__ = ["MilterConnection", "MilterDownError"]

_QUICKACK = getattr(socket, "TCP_QUICKACK", None)  # of Linux


class MilterDownError(Exception):
    """A milter cannot be reached, breaks the protocol, or takes too long; the text says which."""


class MilterConnection(asyncio.Protocol):
    """A connection to a milter. Make it with :meth:`to`.

    :ivar conversation: what is said on it
    """

    def __init__(self, conversation: Conversation, seconds: float) -> None:
        self.conversation = conversation
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._paused = False
        self._settled: asyncio.Future[None] | None = None
        self._transport: Any = None
        self._socket: Any = None  # of TCP

    @classmethod
    async def to(
        cls, address: HopAddress, conversation: Conversation, *, connect: float, answer: float
    ) -> Self:
        """Connect.

        :param connect: seconds that it may take
        :param answer: seconds that each answer may take
        :raises MilterDownError: the milter cannot be reached
        """
        loop = asyncio.get_running_loop()
        made = cls(conversation, answer)
        try:
            async with asyncio.timeout(connect):
                if address.path:
                    await loop.create_unix_connection(lambda: made, address.path)
                else:
                    await loop.create_connection(lambda: made, address.host, address.port)
        except TimeoutError:
            raise MilterDownError(f"no connection within {connect:g} s") from None
        except OSError as error:
            raise MilterDownError(_reason(error)) from None
        return made

    async def tell(self, steps: Iterable[Step]) -> None:
        """Tell events, and wait until the milter has answered them.

        :raises MilterDownError: it has not
        """
        conversation = self.conversation
        conversation.tell(steps)
        self._pump()
        try:
            while not conversation.settled:
                await self._progress()
        except BaseException:
            self.close()
            raise
        if conversation.fault:
            self.close()
            raise MilterDownError(conversation.fault)

    async def _progress(self) -> None:
        """Wait until the milter has said something, or read something."""
        before = self.conversation.progress
        self._settled = self._loop.create_future()
        try:
            async with asyncio.timeout(self._seconds):
                await self._settled
        except TimeoutError:
            if self.conversation.progress == before:
                raise MilterDownError(f"no answer within {self._seconds:g} s") from None
        finally:
            self._settled = None

    # -- asyncio's calls ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = transport
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket = sock
        self._pump()

    def data_received(self, data: bytes) -> None:
        """Take what the milter said."""
        self._acknowledge()
        self.conversation.receive(data)
        self._pump()

    def connection_lost(self, exc: Exception | None) -> None:
        """Take note of the end."""
        self._socket = None
        reason = "it closed the connection"
        if isinstance(exc, OSError):
            reason = f"connection lost: {_reason(exc)}"
        self.conversation.fail(reason)
        self._notice()

    def pause_writing(self) -> None:
        """Send no further events: the milter is slow to read."""
        self._paused = True

    def resume_writing(self) -> None:
        """Go on sending."""
        self._paused = False
        self.conversation.progress += 1
        self._pump()

    def _pump(self) -> None:
        while not self._paused and (data := self.conversation.take()):
            self._transport.write(data)
            self._acknowledge()
            if self.conversation.state is State.READY:  # there is more, and others have their turn
                self._loop.call_soon(self._pump)
                return
        self._notice()

    def _acknowledge(self) -> None:
        """Have the next segments acknowledged at once.

        A milter's library writes an answer in pieces, and Nagle's algorithm holds the second of
        them until the first one is acknowledged: that is 40 ms later, unless it is asked for.
        """
        if self._socket is not None and _QUICKACK is not None:
            self._socket.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)

    def _notice(self) -> None:
        waiting = self._settled
        if waiting is not None and not waiting.done() and self.conversation.settled:
            waiting.set_result(None)

    def close(self) -> None:
        """End; a milter that has decided is told so."""
        if self._transport is None:
            return
        if self.conversation.verdict is None or self._transport.get_write_buffer_size():
            self.conversation.fail("given up")
            self._transport.abort()
        else:
            self._transport.close()


def _reason(error: OSError) -> str:
    """Return why, without the address: the log has it already."""
    if error.errno is not None and error.errno > 0:  # those of getaddrinfo(3) are below 0
        return os.strerror(error.errno)
    return error.strerror or str(error)
