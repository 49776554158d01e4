"""SocketTransport: a plaintext connection with recv(2) and send(2) on the client's socket.

The loop's transports have more features, at a cost: uvloop's takes 1,271 bytes, half of an idle
session, and makes four system calls that are not needed here. For TLS, the socket is passed to the
loop (:mod:`~smtpd_fork.smtp.starttls`).

These rules apply, as for any transport of asyncio:

- unsent data is stored; above a limit, the protocol is asked to pause;
- ``connection_lost`` is called once, and never during a call of the protocol.
"""

from __future__ import annotations

import asyncio
import socket
from asyncio.trsock import TransportSocket
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from smtpd_fork.smtp.protocol_adapter import BUFFER_SIZE, feed
from smtpd_fork.smtp.socket_poll import READ, WRITE

if TYPE_CHECKING:
    from smtpd_fork.smtp.socket_poll import SocketPoll

__all__ = ["SocketTransport"]

READS_A_TURN = 4
"""Full buffers that are read from one socket before other sockets: 1 MiB."""

HIGH_WATER = 64 * 1024
"""Unsent bytes above which the protocol is asked to pause; the same as in asyncio and uvloop."""

_USUAL_LIMITS = HIGH_WATER // 4, HIGH_WATER


class State(IntEnum):
    """The state of a connection; it only changes to a later one."""

    OPEN = 0
    SHUT = 1  # closed for writing, once all data is sent
    CLOSING = 2  # to be closed once all data is sent
    CLOSED = 3


_OPEN, _SHUT, _CLOSING, _CLOSED = State
"""Copies of states, as attributes of an Enum are slow to look up."""


class SocketTransport(asyncio.Transport):
    """A plaintext connection.

    :param poll: the SocketPoll of the session's loop
    :param sock: the client's socket, which belongs to the transport from now on
    """

    __slots__ = (
        *("_blocked", "_buffered", "_error", "_events", "_limits", "_poll", "_protocol"),
        *("_sock", "_state", "_unsent"),
    )

    def __init__(self, poll: SocketPoll, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._poll = poll
        self._sock: Any = sock  # None after close() or detach()
        self._protocol: Any = None
        self._buffered = False  # whether the protocol has no data_received()
        self._blocked = False  # whether the protocol was asked to pause
        self._state = _OPEN
        self._events = READ  # the events of the notifications
        self._unsent: bytearray | None = None
        self._limits = _USUAL_LIMITS
        self._error: Exception | None = None

    def begin(self, protocol: asyncio.BaseProtocol) -> None:
        """Connect a protocol, which gets the events of the connection."""
        self.set_protocol(protocol)
        self._poll.begin(self, self._sock.fileno())
        try:
            protocol.connection_made(self)
        except Exception as error:  # noqa: BLE001 - a user's class may raise anything
            self._fail(error)

    def begin_reading(self) -> None:
        """Start the notifications that have been requested so far."""
        events, self._events = self._events, 0
        self._watch(events)

    def detach(self) -> tuple[socket.socket, bytes]:
        """Return the socket, for another transport, and the unsent data.

        :raises ConnectionResetError: the connection is closed
        """
        if self.is_closing():
            raise ConnectionResetError
        sock, unsent = self._sock, bytes(self._unsent or b"")
        self._watch(0)
        self._state = _CLOSED
        self._sock = self._protocol = self._unsent = None
        return sock, unsent

    def __repr__(self) -> str:
        return f"<SocketTransport {self._state.name} unsent={self.get_write_buffer_size()}>"

    # -- information -------------------------------------------------------------------------------

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return ``peername``, ``sockname`` or ``socket`` while it is open, else *default*."""
        sock = self._sock
        try:
            if sock is None:
                return default
            if name == "peername":
                return sock.getpeername()
            if name == "sockname":
                return sock.getsockname()
        except OSError:  # the client has reset it
            return default
        return TransportSocket(sock) if name == "socket" else default

    def get_protocol(self) -> Any:
        """Return the protocol that gets the events of the connection."""
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Change the protocol that gets the events of the connection."""
        self._protocol = protocol
        self._buffered = not hasattr(protocol, "data_received")

    def is_closing(self) -> bool:
        """Return whether the connection is closed or closing."""
        return self._state >= _CLOSING

    def is_reading(self) -> bool:
        """Return whether input is received."""
        return bool(self._events & READ)

    def can_write_eof(self) -> bool:
        """Return True, as the connection can stay half open."""
        return True

    def get_write_buffer_size(self) -> int:
        """Return the number of unsent bytes."""
        return 0 if self._unsent is None else len(self._unsent)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """Return the numbers of unsent bytes for resuming, and for pausing, the protocol."""
        return self._limits

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set the numbers of unsent bytes for pausing, and for resuming, the protocol.

        :raises ValueError: not ``0 <= low <= high``
        """
        if high is None:
            high = HIGH_WATER if low is None else 4 * low
        if low is None:
            low = high // 4
        if not high >= low >= 0:
            raise ValueError(f"high ({high!r}) must be >= low ({low!r}) must be >= 0")
        self._limits = low, high
        self._pause_protocol()

    # -- input -------------------------------------------------------------------------------------

    def pause_reading(self) -> None:
        """Stop receiving, so that input stays in the kernel."""
        self._watch(self._events & ~READ)

    def resume_reading(self) -> None:
        """Receive input again."""
        if self._state < _CLOSING:
            self._watch(self._events | READ)

    def act(self, events: int) -> None:
        """Receive or send, according to *events*."""
        try:
            if events != WRITE and self._events & READ:
                reads = 1
                while self._read() and reads < READS_A_TURN:
                    reads += 1
            if events != READ and self._unsent is not None:
                self._send_rest()
        except Exception as error:  # noqa: BLE001 - a user's class may raise anything
            self._fail(error)
        if self._state == _CLOSED:
            self._report_loss()

    def _read(self) -> bool:
        """Receive once; return whether there may be more."""
        view = self._poll.view
        try:
            count = self._sock.recv_into(view)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            self._fail(error)
            return False
        if not count:
            self._end_input()
        elif self._buffered:
            feed(self._protocol, view[:count].tobytes())
        else:
            self._protocol.data_received(view[:count].tobytes())
        return count == BUFFER_SIZE and self.is_reading()

    def _end_input(self) -> None:
        if self._protocol.eof_received():
            self.pause_reading()
        else:
            self.close()

    # -- output ------------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send data, and store the part that the socket does not accept yet.

        :raises RuntimeError: after :meth:`write_eof`
        """
        if self._state == _SHUT:
            raise RuntimeError("Cannot call write() after write_eof()")
        if self._state != _OPEN or not data:
            return
        if self._unsent is not None:
            self._unsent += data
        else:
            try:
                sent = self._sock.send(data)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError as error:
                self._fail(error)
                return
            if sent == len(data):
                return
            self._unsent = bytearray(memoryview(data)[sent:])
            self._watch(self._events | WRITE)
        self._pause_protocol()

    def _send_rest(self) -> None:
        assert self._unsent is not None
        try:
            sent = self._sock.send(self._unsent)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._fail(error)
            return
        del self._unsent[:sent]
        left = len(self._unsent)
        if not left:
            self._unsent = None
            self._watch(self._events & ~WRITE)
        if self._blocked and left <= self._limits[0]:
            self._blocked = False
            self._protocol.resume_writing()
        if self._unsent is not None:
            return
        if self._state == _SHUT:
            self._sock.shutdown(socket.SHUT_WR)
        elif self._state == _CLOSING:
            self._close()

    def _pause_protocol(self) -> None:
        if not self._blocked and self.get_write_buffer_size() > self._limits[1]:
            self._blocked = True
            self._protocol.pause_writing()

    # -- the end -----------------------------------------------------------------------------------

    def write_eof(self) -> None:
        """Close for writing, once all data is sent.

        :raises OSError: the client has reset the connection
        """
        if self._state == _OPEN:
            self._state = _SHUT
            if self._unsent is None:
                self._sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Stop receiving, and close once all data is sent."""
        if self._state < _CLOSING:
            self._state = _CLOSING
            self.pause_reading()
            if self._unsent is None:
                self._close()

    def abort(self) -> None:
        """Close at once; unsent data is lost."""
        if self._state != _CLOSED:
            self._close()

    def _fail(self, error: Exception) -> None:
        """Close the connection after an error of the socket or the protocol."""
        if not isinstance(error, OSError):
            context = {"message": "a protocol failed", "exception": error, "transport": self}
            self._poll.loop.call_exception_handler(context)
        if self._state != _CLOSED:
            self._error = error
            self._close()

    def _close(self) -> None:
        self._state = _CLOSED
        self._watch(0)
        self._unsent = None
        sock, self._sock = self._sock, None
        sock.close()
        if self._poll.turn is not self:
            self._poll.loop.call_soon(self._report_loss)

    def _report_loss(self) -> None:
        """Call ``connection_lost`` of the protocol, once."""
        protocol, self._protocol = self._protocol, None
        if protocol is not None:
            error, self._error = self._error, None
            try:
                protocol.connection_lost(error)
            except Exception as failure:  # noqa: BLE001 - a user's class may raise anything
                self._fail(failure)

    def _watch(self, events: int) -> None:
        before, self._events = self._events, events
        if events == before:
            return
        try:
            self._poll.watch(self, self._sock.fileno(), before, events)
        except OSError as error:
            self._events = before
            self._fail(error)
