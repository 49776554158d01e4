r"""CommandReader: aiosmtpd's view of the stream, and the place where a session can end in order.

aiosmtpd reads a command with ``readuntil()`` and a line of DATA with ``readuntil(b"\r\n")``. So
a call without a separator is the boundary between commands: everything before it has been
answered, and nothing is half done. Here the session is told, and may end.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CommandReader"]

COMMANDS_A_TURN = 16
"""Pipelined commands that one session may have answered before the others have their turn."""


class CommandReader:
    """Reads for one session.

    :param reader: asyncio's
    :param at_boundary: called before each command is read; may raise CancelledError
    """

    def __init__(self, reader: asyncio.StreamReader, at_boundary: Callable[[], None]) -> None:
        self._reader = reader
        self._at_boundary = at_boundary
        self._turn = 0
        self.idle = False
        """Whether a command is awaited, and nothing else is going on."""
        self.read = reader.read
        self.readline = reader.readline

    async def readuntil(self, separator: bytes = b"\n") -> bytes:
        """Return the bytes up to and with *separator*.

        :raises asyncio.CancelledError: the input is at its end: so aiosmtpd's loop ends in order,
            and what was not complete is discarded
        :raises asyncio.LimitOverrunError: as :meth:`asyncio.StreamReader.readuntil`
        """
        if separator == b"\n":
            self._at_boundary()
            self._turn += 1
            if self._turn % COMMANDS_A_TURN == 0:
                # readuntil() does not yield while there is data: a client that pipelines would
                # hold the loop for as long as it likes.
                await asyncio.sleep(0)
            self.idle = True
        try:
            return await self._reader.readuntil(separator)
        except asyncio.IncompleteReadError:
            raise asyncio.CancelledError from None
        finally:
            self.idle = False

    def discard(self) -> None:
        """Forget what was received and not read (RFC 3207 4.2: nothing survives STARTTLS)."""
        self._reader._buffer.clear()  # type: ignore[attr-defined]  # noqa: SLF001 - asyncio has no other way
        self._reader._maybe_resume_transport()  # type: ignore[attr-defined]  # noqa: SLF001 - see above

    def use(self, transport: asyncio.BaseTransport) -> None:
        """Read from *transport* from now on."""
        self._reader._transport = transport  # type: ignore[attr-defined]  # noqa: SLF001 - set_transport() is for once only
