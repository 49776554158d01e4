"""MilterConnection: a :class:`Conversation` on a connection, with timeouts."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from smtpd_fork.hops.address import HopAddress
    from smtpd_fork.hops.milter.conversation import Conversation
    from smtpd_fork.hops.milter.events import Step

__all__ = ["MilterConnection", "MilterDownError"]

_QUICKACK = getattr(socket, "TCP_QUICKACK", None)  # only on Linux

BUSY_SECONDS = 0.01
"""Pause between attempts to connect to a unix socket with a full backlog: no event reports that the
backlog has space again."""


class MilterDownError(Exception):
    """A milter cannot be reached, violates the protocol, or exceeds a timeout."""


class MilterConnection(asyncio.Protocol):
    """A connection to a milter. Use :meth:`to` to make it.

    :ivar conversation: the state of the protocol
    :ivar lost: whether the milter or the network has closed the connection
    :ivar sent: number of writes
    """

    def __init__(
        self, conversation: Conversation, seconds: float, ended: Callable[[], object]
    ) -> None:
        self.conversation = conversation
        self.lost = False
        self.sent = 0
        self._seconds = seconds
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._paused = False
        self._settled: asyncio.Future[None] | None = None
        self._until = 0.0  # the deadline of all answers, in the time of the loop
        self._seen = 0  # the progress when the timer was set
        self._transport: Any = None
        self._socket: Any = None  # if it is a TCP socket

    @classmethod
    async def to(
        cls, address: HopAddress, conversation: Conversation, ended: Callable[[], object],
        *, connect: float, answer: float,
    ) -> Self:  # fmt: skip
        """Connect.

        :param ended: called after an established connection is lost or closed
        :param connect: timeout of connecting, in seconds
        :param answer: timeout of each answer, in seconds
        :raises MilterDownError: the milter cannot be reached
        """
        made = cls(conversation, answer, ended)
        try:
            await _connect(address, made, connect)
        except TimeoutError:
            raise MilterDownError(f"no connection within {connect:g} s") from None
        except OSError as error:
            raise MilterDownError(_reason(error)) from None
        return made

    async def send(
        self, steps: Iterable[Step], until: float, *, each_recipient: bool = False
    ) -> None:
        """Send events, and wait until the milter has answered them.

        :param until: the deadline, in the time of the loop
        :raises MilterDownError: the milter has not answered
        """
        conversation = self.conversation
        conversation.send(steps, each_recipient=each_recipient)
        self._pump()
        if not conversation.settled:
            await self._until_settled(until)
        if conversation.verdict is None and conversation.fault:
            raise MilterDownError(conversation.fault)

    async def _until_settled(self, until: float) -> None:
        """Wait for the answers; an ``asyncio.timeout()`` for each would be several times slower."""
        settled = self._settled = self._loop.create_future()
        self._until = until
        self._set_timer()
        try:
            await settled
        except BaseException:
            self.close()
            raise
        finally:
            self._settled = None
            self._timer.cancel()

    def _set_timer(self) -> None:
        self._seen = self.conversation.progress
        at = min(self._loop.time() + self._seconds, self._until)
        self._timer = self._loop.call_at(at, self._check_timeouts)

    def _check_timeouts(self) -> None:
        """Close the connection if a timeout has expired, otherwise set the timer again."""
        if self._loop.time() >= self._until:
            self._abort("no verdict within total-timeout")
        elif self.conversation.progress == self._seen:
            self._abort(f"no answer within {self._seconds:g} s")
        else:
            self._set_timer()

    def begin(self) -> None:
        """Begin a transaction; an unfinished one is aborted."""
        if self.conversation.begin():
            self._pump()

    def _abort(self, reason: str) -> None:
        self.conversation.fail(reason)
        self._transport.abort()
        self._wake()

    # -- callbacks of asyncio ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the negotiation."""
        self._transport = transport
        sock = transport.get_extra_info("socket")
        if _QUICKACK is not None and sock is not None and sock.family != socket.AF_UNIX:
            self._socket = sock
        self._pump()

    def data_received(self, data: bytes) -> None:
        """Handle the milter's answers."""
        self.conversation.receive(data)
        self._pump()

    def connection_lost(self, exc: Exception | None) -> None:
        """Record the end of the connection, and wake the waiting task."""
        self._socket = None
        self.lost = not self.conversation.fault
        reason = "it closed the connection"
        if isinstance(exc, OSError):
            reason = f"connection lost: {_reason(exc)}"
        self.conversation.fail(reason)
        self._wake()
        self._ended()

    def pause_writing(self) -> None:
        """Stop sending: the milter reads slowly."""
        self._paused = True

    def resume_writing(self) -> None:
        """Continue sending."""
        self._paused = False
        self.conversation.progress += 1
        self._pump()

    def _pump(self) -> None:
        conversation = self.conversation
        if not self._paused and (data := conversation.data_to_send()):
            self._transport.write(data)
            self.sent += 1
            self._acknowledge()
            if conversation.has_more:  # yield to other callbacks of the loop
                self._loop.call_soon(self._pump)
                return
        if conversation.fault and not self._transport.is_closing():
            self._transport.abort()  # it broke the protocol
        if self._settled is not None:
            self._wake()

    def _acknowledge(self) -> None:
        """Have the next segments acknowledged immediately; each write resets this.

        A milter's library writes an answer in several pieces. Nagle's algorithm delays the second
        piece until the first is acknowledged, and the kernel delays that by 40 ms otherwise.
        """
        if self._socket is not None:
            self._socket.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)

    def _wake(self) -> None:
        waiting = self._settled
        if waiting is not None and not waiting.done() and self.conversation.settled:
            waiting.set_result(None)

    def close(self) -> None:
        """Close the connection; send QUIT first if no event is unanswered."""
        if self._transport is None:
            return
        if not self.conversation.reusable or self._transport.get_write_buffer_size():
            self.conversation.fail("given up")
            self._transport.abort()
        else:
            self.conversation.quit()
            self._transport.write(self.conversation.data_to_send())
            self._transport.close()


async def _connect(address: HopAddress, made: MilterConnection, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    if not address.path:
        async with asyncio.timeout(seconds):
            await loop.create_connection(lambda: made, address.host, address.port)
        return
    until = loop.time() + seconds
    while (sock := _connected(address.path)) is None:
        if loop.time() >= until:
            raise TimeoutError
        await asyncio.sleep(BUSY_SECONDS)
    await loop.create_unix_connection(lambda: made, sock=sock)


def _connected(path: str) -> socket.socket | None:
    """Return a connected unix socket; None if the backlog of the milter is full.

    A non-blocking unix socket is connected immediately, or fails with EAGAIN if the backlog is
    full. asyncio would take EAGAIN for a connection in progress.

    :raises OSError: the milter cannot be reached
    """
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.setblocking(False)
        sock.connect(path)
    except BlockingIOError:
        sock.close()
        return None
    except BaseException:
        sock.close()
        raise
    return sock


def _reason(error: OSError) -> str:
    """Return the text of an error without the address, which is in the log line already."""
    if error.errno is not None and error.errno > 0:  # errors of getaddrinfo(3) are negative
        return os.strerror(error.errno)
    return error.strerror or str(error)
