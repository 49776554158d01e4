"""ProtocolAdapter: stands between the loop and a session, where either is not to hold the other.

asyncio's TLS layer never lets go of the methods of its protocol, and the transport never of the
layer: what they keep of an ended session is this. And uvloop takes no Protocol, which the session
of a user's class is, for a BufferedProtocol.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any

__all__ = ["BUFFER_SIZE", "ProtocolAdapter", "buffer", "feed"]

BUFFER_SIZE = 256 * 1024
"""What one read takes at most; uvloop's own limit, and enough for a socket's buffer."""

_of_thread = threading.local()


def buffer() -> memoryview:
    """Return where the sessions of a loop receive to; what is there is taken out at once."""
    try:
        view: memoryview = _of_thread.view
    except AttributeError:
        view = _of_thread.view = memoryview(bytearray(BUFFER_SIZE))
    return view


def feed(protocol: Any, data: bytes) -> None:
    """Give *data* to an asyncio.BufferedProtocol (which uvloop's TLS layer is in all but name)."""
    rest = memoryview(data)
    while rest:
        view = protocol.get_buffer(len(rest))
        count = min(len(view), len(rest))
        view[:count] = rest[:count]
        protocol.buffer_updated(count)
        rest = rest[count:]


class ProtocolAdapter(asyncio.BufferedProtocol):
    """Hands on what the loop says, until the connection is lost.

    It receives into one buffer for all sessions of a loop. For a Protocol the loop would allocate
    up to 256 KiB for each read, which goes through mmap(2) and page faults every time, and doubles
    what large messages cost.

    :param target: gets the calls; a connection, or a session of a user's class
    """

    __slots__ = ("_target", "_view")

    def __init__(self, target: asyncio.Protocol) -> None:
        self._target: asyncio.Protocol | None = target
        self._view = buffer()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where to receive to (asyncio.BufferedProtocol)."""
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        """Take what was received, before it is overwritten (asyncio.BufferedProtocol)."""
        self.data_received(self._view[:nbytes].tobytes())

    def data_received(self, data: bytes) -> None:
        """Take bytes (asyncio.Protocol)."""
        if self._target is not None:
            self._target.data_received(data)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin (asyncio.BaseProtocol)."""
        if self._target is not None:
            try:
                self._target.connection_made(transport)
            except BaseException:
                transport.abort()  # type: ignore[attr-defined]  # a stream's; its connection_lost comes
                raise

    def connection_lost(self, exc: Exception | None) -> None:
        """End (asyncio.BaseProtocol)."""
        target, self._target = self._target, None
        if target is not None:
            target.connection_lost(exc)

    def eof_received(self) -> bool | None:
        """Take the end of the input (asyncio.BufferedProtocol)."""
        return None if self._target is None else self._target.eof_received()

    def pause_writing(self) -> None:
        """Write no more for now (asyncio.BaseProtocol)."""
        if self._target is not None:
            self._target.pause_writing()

    def resume_writing(self) -> None:
        """Write again (asyncio.BaseProtocol)."""
        if self._target is not None:
            self._target.resume_writing()
