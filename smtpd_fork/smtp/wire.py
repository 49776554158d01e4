"""Wire: what the loop's transport talks to, one for each session.

A BufferedProtocol that receives into one buffer for all sessions of a loop: the bytes are taken
out before the next session's arrive. With a Protocol the loop would allocate up to 256 KiB for each
read, which goes through mmap(2) and page faults every time, and doubles what large messages cost.

It is an object of its own because uvloop takes no Protocol (and the SMTP class is one, by its
ancestors) for a BufferedProtocol.
"""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from smtpd_fork.smtp.tally import Tally

__all__ = ["MeteredWire", "Wire"]

BUFFER_SIZE = 256 * 1024
"""What one read takes at most; uvloop's own figure, and enough for a socket's buffer."""

_of_thread = threading.local()


class Session(Protocol):
    """Whom a wire tells."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""

    def connection_lost(self, error: Exception | None) -> None:
        """End."""

    def data_received(self, data: bytes) -> None:
        """Take bytes."""

    def eof_received(self) -> bool | None:
        """Take the end of the input."""

    def pause_writing(self) -> None:
        """Write no more for now."""

    def resume_writing(self) -> None:
        """Write again."""


class _NoSession:
    """Stands where a session was: an ended one is not kept by what keeps its wire.

    asyncio's TLS layer never lets go of the wire's methods, and the transport never of the layer.
    """

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Do nothing, like all the rest here: the connection is lost."""

    def connection_lost(self, error: Exception | None) -> None: ...

    def data_received(self, data: bytes) -> None: ...

    def eof_received(self) -> bool | None: ...

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None: ...


_NO_SESSION = _NoSession()


class Wire(asyncio.BufferedProtocol):
    """Hands on what the transport says, until the connection is lost.

    :param session: is told
    """

    __slots__ = ("_session", "_view")

    def __init__(self, session: Session) -> None:
        try:
            self._view: memoryview = _of_thread.view
        except AttributeError:
            self._view = _of_thread.view = memoryview(bytearray(BUFFER_SIZE))
        self._session: Session = session

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where to receive to (asyncio.BufferedProtocol)."""
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        """Take what was received, before it is overwritten (asyncio.BufferedProtocol)."""
        self._session.data_received(self._view[:nbytes].tobytes())

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin (asyncio.BaseProtocol)."""
        try:
            self._session.connection_made(transport)
        except BaseException:
            transport.abort()  # type: ignore[attr-defined]  # a stream's; its connection_lost comes
            raise

    def connection_lost(self, exc: Exception | None) -> None:
        """End (asyncio.BaseProtocol)."""
        session, self._session = self._session, _NO_SESSION
        session.connection_lost(exc)

    def eof_received(self) -> bool | None:
        """Take the end of the input (asyncio.BufferedProtocol)."""
        return self._session.eof_received()

    def pause_writing(self) -> None:
        """Write no more for now (asyncio.BaseProtocol)."""
        self._session.pause_writing()

    def resume_writing(self) -> None:
        """Write again (asyncio.BaseProtocol)."""
        self._session.resume_writing()


class MeteredWire(Wire):
    """A wire that counts what is received; who does not count has none, and pays nothing.

    :param tally: where to
    :param session: is told
    """

    __slots__ = ("_tally",)

    def __init__(self, tally: Tally, session: Session) -> None:
        super().__init__(session)
        self._tally = tally

    def buffer_updated(self, nbytes: int) -> None:
        """Count what was received, and take it (asyncio.BufferedProtocol)."""
        self._tally.received += nbytes
        self._session.data_received(self._view[:nbytes].tobytes())
