"""SocketPoll: tells the transports of one loop what their sockets are ready for.

The sockets are in an epoll(7) of their own, which is itself what the loop watches. In the loop's
each would have a handle, in uvloop of some 600 bytes, which takes longer to begin and to end.

The laws:

- a socket leaves the epoll before it is closed: the entry of one that a child process has inherited
  would outlive it;
- an event that comes when its socket is closed already, and whose descriptor may be another
  socket's by then, finds nothing to read and has no effect.
"""

from __future__ import annotations

import select
from typing import TYPE_CHECKING

from smtpd_fork.smtp.protocol_adapter import buffer

if TYPE_CHECKING:
    import asyncio

    from smtpd_fork.smtp.socket_transport import SocketTransport

__all__ = ["READ", "WRITE", "LoopPoll", "SocketPoll"]

READ, WRITE = getattr(select, "EPOLLIN", 1), getattr(select, "EPOLLOUT", 4)

EVENTS_A_TURN = 64
"""Sockets that are read from before the loop has its turn: a few milliseconds."""


class SocketPoll:
    """Tells the transports of one loop what their sockets are ready for.

    :param loop: that runs
    :ivar turn: the transport that handles an event now
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.turn: SocketTransport | None = None
        self.view = buffer()
        self._epoll = select.epoll()
        self._transports: dict[int, SocketTransport] = {}
        self._new: dict[int, SocketTransport] = {}
        loop.add_reader(self._epoll.fileno(), self._tell)

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> SocketPoll:
        """Return one that the system has."""
        return cls(loop) if hasattr(select, "epoll") else LoopPoll(loop)

    def begin(self, transport: SocketTransport, descriptor: int) -> None:
        """Have a transport begin to read in the loop's next turn, as asyncio's do.

        What ``connection_made`` has started, a task for one, has begun by then.
        """
        if not self._new:
            self.loop.call_soon(self._begin_new)
        self._new[descriptor] = transport

    def _begin_new(self) -> None:
        new, self._new = self._new, {}
        for transport in new.values():
            transport.begin_reading()

    def watch(self, transport: SocketTransport, descriptor: int, before: int, events: int) -> None:
        """Tell a transport of *events* from now on; of none if there are none.

        :raises OSError: the system allows no more (``fs.epoll.max_user_watches``)
        """
        if descriptor in self._new:
            if not events:
                del self._new[descriptor]
        elif not events:
            del self._transports[descriptor]
            self._epoll.unregister(descriptor)
        elif before:
            self._epoll.modify(descriptor, events)
        else:
            self._epoll.register(descriptor, events)
            self._transports[descriptor] = transport

    def close(self) -> None:
        """Tell nobody any more."""
        self.loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def _tell(self) -> None:
        find = self._transports.get
        try:
            for descriptor, events in self._epoll.poll(0, EVENTS_A_TURN):
                transport = find(descriptor)
                if transport is not None:
                    self.turn = transport
                    transport.act(events)
        finally:
            self.turn = None


class LoopPoll(SocketPoll):
    """The same where there is no epoll(7): the loop itself watches each socket."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.turn = None
        self.view = buffer()

    def begin(self, transport: SocketTransport, descriptor: int) -> None:
        """Have a transport begin to read; no loop does so before its next turn."""
        transport.begin_reading()

    def watch(self, transport: SocketTransport, descriptor: int, before: int, events: int) -> None:
        """Tell a transport of *events* from now on; of none if there are none."""
        loop = self.loop
        for event, begin, end in (
            (READ, loop.add_reader, loop.remove_reader),
            (WRITE, loop.add_writer, loop.remove_writer),
        ):
            if events & event > before & event:
                begin(descriptor, self._tell_one, transport, event)
            elif events & event < before & event:
                end(descriptor)

    def close(self) -> None:
        """Do nothing: it watches nothing by itself."""

    def _tell_one(self, transport: SocketTransport, events: int) -> None:
        self.turn = transport
        try:
            transport.act(events)
        finally:
            self.turn = None
