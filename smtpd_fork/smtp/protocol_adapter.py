"""ProtocolAdapter: a protocol between the loop and a session, so that neither refers to the other.

asyncio's TLS layer keeps references to the methods of its protocol, and the transport to the layer:
of an ended session they keep only this object. Besides, uvloop requires a BufferedProtocol here,
which the session of a user's class is not.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any

__all__ = ["BUFFER_SIZE", "ProtocolAdapter", "buffer", "feed"]

BUFFER_SIZE = 256 * 1024
"""Maximum bytes of a read; uvloop has the same limit, and it is enough for a socket's buffer."""

_of_thread = threading.local()


def buffer() -> memoryview:
    """Return the receive buffer of a loop's sessions, which copy the data out at once."""
    try:
        view: memoryview = _of_thread.view
    except AttributeError:
        view = _of_thread.view = memoryview(bytearray(BUFFER_SIZE))
    return view


def feed(protocol: Any, data: bytes) -> None:
    """Pass *data* to an asyncio.BufferedProtocol, or to uvloop's TLS layer."""
    rest = memoryview(data)
    while rest:
        view = protocol.get_buffer(len(rest))
        count = min(len(view), len(rest))
        view[:count] = rest[:count]
        protocol.buffer_updated(count)
        rest = rest[count:]


class ProtocolAdapter(asyncio.BufferedProtocol):
    """Passes the calls of the loop on until the connection is lost.

    It receives into one buffer for all sessions of a loop. For a Protocol, the loop would allocate
    up to 256 KiB for each read, with mmap(2) and page faults, which doubles the time for large
    messages.

    :param target: the connection, or the session of a user's class, that gets the calls
    """

    __slots__ = ("_target", "_view")

    def __init__(self, target: asyncio.Protocol) -> None:
        self._target: asyncio.Protocol | None = target
        self._view = buffer()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return the receive buffer (asyncio.BufferedProtocol)."""
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        """Pass received data on, before it is overwritten (asyncio.BufferedProtocol)."""
        self.data_received(self._view[:nbytes].tobytes())

    def data_received(self, data: bytes) -> None:
        """Pass received data on (asyncio.Protocol)."""
        if self._target is not None:
            self._target.data_received(data)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Pass the beginning of the connection on (asyncio.BaseProtocol)."""
        if self._target is not None:
            try:
                self._target.connection_made(transport)
            except BaseException:
                transport.abort()  # type: ignore[attr-defined]  # it then calls connection_lost
                raise

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass the end of the connection on (asyncio.BaseProtocol)."""
        target, self._target = self._target, None
        if target is not None:
            target.connection_lost(exc)

    def eof_received(self) -> bool | None:
        """Pass the end of input on (asyncio.BufferedProtocol)."""
        return None if self._target is None else self._target.eof_received()

    def pause_writing(self) -> None:
        """Pass the request to stop writing on (asyncio.BaseProtocol)."""
        if self._target is not None:
            self._target.pause_writing()

    def resume_writing(self) -> None:
        """Pass the permission to write on (asyncio.BaseProtocol)."""
        if self._target is not None:
            self._target.resume_writing()
