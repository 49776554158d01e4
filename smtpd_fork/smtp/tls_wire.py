"""TlsWire: stands between the loop's TLS layer and a connection.

asyncio's TLS layer never lets go of the methods of its protocol, and the transport never of the
layer: so what they keep of an ended session is this.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smtpd_fork.smtp.connection import Connection

__all__ = ["TlsWire"]


class TlsWire(asyncio.BufferedProtocol):
    """Hands on what the TLS layer says, until the connection is lost.

    :param connection: is told
    """

    __slots__ = ("_connection",)

    def __init__(self, connection: Connection) -> None:
        self._connection: Connection | None = connection

    def get_buffer(self, sizehint: int) -> memoryview | bytearray:
        """Return where to receive to (asyncio.BufferedProtocol)."""
        connection = self._connection
        return bytearray(1) if connection is None else connection.get_buffer(sizehint)

    def buffer_updated(self, nbytes: int) -> None:
        """Take what was received (asyncio.BufferedProtocol)."""
        if self._connection is not None:
            self._connection.buffer_updated(nbytes)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin (asyncio.BaseProtocol)."""
        if self._connection is not None:
            self._connection.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """End (asyncio.BaseProtocol)."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.connection_lost(exc)

    def eof_received(self) -> bool | None:
        """Take the end of the input (asyncio.BufferedProtocol)."""
        return None if self._connection is None else self._connection.eof_received()

    def pause_writing(self) -> None:
        """Write no more for now (asyncio.BaseProtocol)."""
        if self._connection is not None:
            self._connection.pause_writing()

    def resume_writing(self) -> None:
        """Write again (asyncio.BaseProtocol)."""
        if self._connection is not None:
            self._connection.resume_writing()
