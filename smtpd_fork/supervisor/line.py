"""Line: the connection between the supervisor and one of its processes.

A socket pair that the process inherits. Each end may ask and tell: a frame is a line of JSON with
a number, a word and a body; the answer has the number, negative. End of file is the end of the
other process, however it ended.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeAlias

import msgspec

from smtpd_fork.control_protocol import Fault, RequestError

__all__ = ["Line", "LineClosedError"]

log = logging.getLogger("smtpd_fork.daemon")

MAX_FRAME = 64 * 1024 * 1024
"""Bytes; the counts of 100,000 clients are a tenth of that."""

_OK, _FAULT = "ok", "fault"

Answer: TypeAlias = Callable[[str, Any], Awaitable[Any]]
"""Carries out what the other end asks: a word, with its body; may raise a RequestError."""


class _Frame(msgspec.Struct, array_like=True):
    number: int
    word: str
    body: Any = None


_decoder = msgspec.json.Decoder(_Frame)


class LineClosedError(ConnectionError):
    """The other process has ended."""


class Line:
    """One end of the line.

    :param sock: the end of the pair; it is owned
    :param answer: what answers the other end
    """

    def __init__(self, sock: socket.socket, answer: Answer | None = None) -> None:
        self._sock = sock
        self._answer = answer
        self._count = 0
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter | None = None

    async def open(self) -> None:
        """Begin; what is asked before :meth:`run` is answered in it."""
        self._reader, self._writer = await asyncio.open_unix_connection(
            sock=self._sock, limit=MAX_FRAME
        )

    async def run(self) -> None:
        """Read until the other process has ended; then what was asked fails."""
        try:
            while line := await self._reader.readline():
                self._receive(_decoder.decode(line))
        except (OSError, ValueError) as error:  # ValueError: a frame that is too long, or no JSON
            log.debug("a line between two processes broke: %r", error)
        finally:
            self.close()

    def close(self) -> None:
        """Close it; what was asked fails."""
        if self._writer is not None:
            self._writer.transport.abort()
        else:
            self._sock.close()
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(LineClosedError())
        for task in self._tasks:
            task.cancel()

    async def ask(self, word: str, body: Any = None, *, seconds: float | None = None) -> Any:
        """Ask the other process; return the answer.

        :param seconds: the longest wait; None: until that process ends
        :raises RequestError: it cannot carry that out
        :raises LineClosedError: it has ended
        :raises TimeoutError: it has not answered in time
        """
        self._count += 1
        number, future = self._count, asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            self._send(_Frame(number, word, body))
            async with asyncio.timeout(seconds):
                return await future
        finally:
            self._waiting.pop(number, None)

    def tell(self, word: str, body: Any = None) -> None:
        """Tell the other process, which does not answer; nothing happens if it has ended."""
        with suppress(LineClosedError):
            self._send(_Frame(0, word, body))

    def _send(self, frame: _Frame) -> None:
        data = msgspec.json.encode(frame) + b"\n"
        if self._writer is None or self._writer.transport.is_closing():
            raise LineClosedError
        self._writer.write(data)

    def _receive(self, frame: _Frame) -> None:
        if frame.number >= 0:
            task = asyncio.ensure_future(self._carry_out(frame))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        future = self._waiting.get(-frame.number)
        if future is None or future.done():
            return
        if frame.word == _OK:
            future.set_result(frame.body)
        else:
            fault, text, status = frame.body
            future.set_exception(RequestError(Fault(fault), text, status))

    async def _carry_out(self, frame: _Frame) -> None:
        assert self._answer is not None
        try:
            reply = _Frame(-frame.number, _OK, await self._answer(frame.word, frame.body))
        except RequestError as error:
            reply = _Frame(-frame.number, _FAULT, (error.fault, error.text, error.status))
        except Exception:
            log.exception("a request of the supervisor failed")
            text = "internal error of a process; the log has the details"
            reply = _Frame(-frame.number, _FAULT, (Fault.FAILED, text, None))
        if frame.number:
            with suppress(LineClosedError):
                self._send(reply)
