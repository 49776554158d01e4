"""MilterConnection: a :class:`Conversation` on a connection, with limits of time."""

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

_QUICKACK = getattr(socket, "TCP_QUICKACK", None)  # of Linux

BUSY_SECONDS = 0.01
"""Before a unix socket whose backlog is full is tried again: it tells nobody when it is not."""


class MilterDownError(Exception):
    """A milter cannot be reached, breaks the protocol, or takes too long; the text says which."""


class MilterConnection(asyncio.Protocol):
    """A connection to a milter. Make it with :meth:`to`.

    :ivar conversation: what is said on it
    :ivar lost: the milter has closed it, or the network has
    """

    def __init__(
        self, conversation: Conversation, seconds: float, ended: Callable[[], object]
    ) -> None:
        self.conversation = conversation
        self.lost = False
        self._seconds = seconds
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._paused = False
        self._settled: asyncio.Future[None] | None = None
        self._until = 0.0  # the loop's time until when it is waited for
        self._seen = 0  # of its progress
        self._transport: Any = None
        self._socket: Any = None  # of TCP

    @classmethod
    async def to(
        cls, address: HopAddress, conversation: Conversation, ended: Callable[[], object],
        *, connect: float, answer: float,
    ) -> Self:  # fmt: skip
        """Connect.

        :param ended: is called once the connection, if it was made, is lost or closed
        :param connect: seconds that it may take
        :param answer: seconds that each answer may take
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

    async def tell(
        self, steps: Iterable[Step], until: float, *, each_recipient: bool = False
    ) -> None:
        """Tell events, and wait until the milter has answered them.

        :param until: the time of the loop until when it may take
        :raises MilterDownError: it has not
        """
        conversation = self.conversation
        conversation.tell(steps, each_recipient=each_recipient)
        self._pump()
        if not conversation.settled:
            await self._until_settled(until)
        if conversation.verdict is None and conversation.fault:
            raise MilterDownError(conversation.fault)

    async def _until_settled(self, until: float) -> None:
        """Wait; ``asyncio.timeout()`` for each answer would cost several times as much."""
        settled = self._settled = self._loop.create_future()
        self._until = until
        self._watch()
        try:
            await settled
        except BaseException:
            self.close()
            raise
        finally:
            self._settled = None
            self._timer.cancel()

    def _watch(self) -> None:
        self._seen = self.conversation.progress
        at = min(self._loop.time() + self._seconds, self._until)
        self._timer = self._loop.call_at(at, self._look)

    def _look(self) -> None:
        """Give up a milter that takes too long."""
        if self._loop.time() >= self._until:
            self._give_up("no verdict within total-timeout")
        elif self.conversation.progress == self._seen:
            self._give_up(f"no answer within {self._seconds:g} s")
        else:
            self._watch()

    def begin(self) -> None:
        """Begin a transaction; one that has not come to its end is aborted."""
        if self.conversation.begin():
            self._pump()

    def _give_up(self, reason: str) -> None:
        self.conversation.fail(reason)
        self._transport.abort()
        self._notice()

    # -- asyncio's calls ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = transport
        sock = transport.get_extra_info("socket")
        if _QUICKACK is not None and sock is not None and sock.family != socket.AF_UNIX:
            self._socket = sock
        self._pump()

    def data_received(self, data: bytes) -> None:
        """Take what the milter said."""
        self.conversation.receive(data)
        self._pump()

    def connection_lost(self, exc: Exception | None) -> None:
        """Take note of the end."""
        self._socket = None
        self.lost = not self.conversation.fault
        reason = "it closed the connection"
        if isinstance(exc, OSError):
            reason = f"connection lost: {_reason(exc)}"
        self.conversation.fail(reason)
        self._notice()
        self._ended()

    def pause_writing(self) -> None:
        """Send no further events: the milter is slow to read."""
        self._paused = True

    def resume_writing(self) -> None:
        """Go on sending."""
        self._paused = False
        self.conversation.progress += 1
        self._pump()

    def _pump(self) -> None:
        conversation = self.conversation
        if not self._paused and (data := conversation.take()):
            self._transport.write(data)
            self._acknowledge()
            if conversation.has_more:  # others have their turn
                self._loop.call_soon(self._pump)
                return
        if conversation.fault and not self._transport.is_closing():
            self._transport.abort()  # it broke the protocol
        if self._settled is not None:
            self._notice()

    def _acknowledge(self) -> None:
        """Have the next segments acknowledged at once; writing ends that.

        A milter's library writes an answer in pieces, and Nagle's algorithm holds the second of
        them until the first one is acknowledged: that is 40 ms later, unless it is asked for.
        """
        if self._socket is not None:
            self._socket.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)

    def _notice(self) -> None:
        waiting = self._settled
        if waiting is not None and not waiting.done() and self.conversation.settled:
            waiting.set_result(None)

    def close(self) -> None:
        """End; a milter that has nothing under way gets QUIT."""
        if self._transport is None:
            return
        if not self.conversation.reusable or self._transport.get_write_buffer_size():
            self.conversation.fail("given up")
            self._transport.abort()
        else:
            self.conversation.quit()
            self._transport.write(self.conversation.take())
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
    """Return a unix socket that is connected, at once as always; None: the backlog is full.

    asyncio's loop takes that for a connection that is under way.

    :raises OSError: there is no such milter
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
    """Return why, without the address: the log has it already."""
    if error.errno is not None and error.errno > 0:  # those of getaddrinfo(3) are below 0
        return os.strerror(error.errno)
    return error.strerror or str(error)
