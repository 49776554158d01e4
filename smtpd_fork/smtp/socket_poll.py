"""SocketPoll: notifies the transports of a loop of the events on their sockets.

The sockets are in a separate epoll(7), which the loop watches. In the loop's own epoll each socket
would need a handle, which in uvloop takes about 600 bytes and is slow to create and close.

These rules apply:

- a socket is removed from the epoll before it is closed: otherwise the entry of a socket that a
  child process has inherited would remain;
- an event for a socket that was closed meanwhile has no effect, even if its descriptor belongs to
  another socket by then: that one finds nothing to read.
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
"""Sockets that are read before other callbacks of the loop: a few milliseconds."""


class SocketPoll:
    """Notifies the transports of one loop of the events on their sockets.

    :param loop: the running loop
    :ivar turn: the transport that handles an event now
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.turn: SocketTransport | None = None
        self.view = buffer()
        self._epoll = select.epoll()
        self._transports: dict[int, SocketTransport] = {}
        self._new: dict[int, SocketTransport] = {}
        loop.add_reader(self._epoll.fileno(), self._notify)

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> SocketPoll:
        """Return an object of the class that the system supports."""
        return cls(loop) if hasattr(select, "epoll") else LoopPoll(loop)

    def begin(self, transport: SocketTransport, descriptor: int) -> None:
        """Start reading on a transport in the next iteration of the loop, as asyncio does.

        Tasks that ``connection_made`` creates have started by then.
        """
        if not self._new:
            self.loop.call_soon(self._begin_new)
        self._new[descriptor] = transport

    def _begin_new(self) -> None:
        new, self._new = self._new, {}
        for transport in new.values():
            transport.begin_reading()

    def watch(self, transport: SocketTransport, descriptor: int, before: int, events: int) -> None:
        """Change the events that a transport is notified of; 0 is none.

        :raises OSError: the system's limit is reached (``fs.epoll.max_user_watches``)
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
        """Stop all notifications."""
        self.loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def _notify(self) -> None:
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
    """The same for systems without epoll(7): the loop itself watches each socket."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.turn = None
        self.view = buffer()

    def begin(self, transport: SocketTransport, descriptor: int) -> None:
        """Start reading on a transport; the loop does so in its next iteration."""
        transport.begin_reading()

    def watch(self, transport: SocketTransport, descriptor: int, before: int, events: int) -> None:
        """Change the events that a transport is notified of; 0 is none."""
        loop = self.loop
        for event, begin, end in (
            (READ, loop.add_reader, loop.remove_reader),
            (WRITE, loop.add_writer, loop.remove_writer),
        ):
            if events & event > before & event:
                begin(descriptor, self._notify_one, transport, event)
            elif events & event < before & event:
                end(descriptor)

    def close(self) -> None:
        """Do nothing, as there is no epoll to close."""

    def _notify_one(self, transport: SocketTransport, events: int) -> None:
        self.turn = transport
        try:
            transport.act(events)
        finally:
            self.turn = None
