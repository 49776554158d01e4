"""Line: the connection between the supervisor and one of its processes.

A socket pair that the process inherits. Each end may ask and tell: a frame has a number, a word and
a body; the answer has the number, negative. End of file is the end of the other process, however it
ended.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeAlias

import msgspec

from smtpd_fork.control_protocol import Fault, RequestError

__all__ = ["Line", "LineClosedError"]

log = logging.getLogger("smtpd_fork.daemon")

_LENGTH = struct.Struct("=I")
"""Before each frame, which is MessagePack: the number of its bytes."""

_OK, _FAULT = "ok", "fault"

Answer: TypeAlias = Callable[[str, Any], Awaitable[Any]]
"""Carries out what the other end asks: a word, with its body; may raise a RequestError."""


class _Frame(msgspec.Struct, array_like=True):
    number: int
    word: str
    body: Any = None


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Frame)


class LineClosedError(ConnectionError):
    """The other process has ended."""


class Line:
    """One end of the line.

    :param sock: the end of the pair; it is owned
    :ivar answer: what answers the other end; set before :meth:`start`, or before it is needed
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.answer: Answer | None = None
        self._starting: asyncio.Task[None] | None = None
        self._ended = asyncio.Event()
        self._count = 0
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter | None = None

    async def start(self) -> None:
        """Begin to read and write, if it has not begun."""
        if self._starting is None:
            self._starting = asyncio.ensure_future(self._open())
        await self._starting

    async def _open(self) -> None:
        self._reader, self._writer = await asyncio.open_unix_connection(sock=self._sock)
        self._running = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        """Read until the other process has ended; then what was asked fails."""
        try:
            while True:
                (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
                self._receive(_decoder.decode(await self._reader.readexactly(length)))
        except (OSError, EOFError, msgspec.MsgspecError) as error:
            log.debug("a line between two processes has ended: %r", error)
        finally:
            self.close()

    async def ended(self) -> None:
        """Wait for the end of the other process, or of the line."""
        await self._ended.wait()

    def close(self) -> None:
        """Close it; what was asked fails."""
        self._ended.set()
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
        if self._writer is None or self._writer.transport.is_closing():
            raise LineClosedError
        data = _encoder.encode(frame)
        self._writer.write(_LENGTH.pack(len(data)) + data)

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
        assert self.answer is not None
        try:
            reply = _Frame(-frame.number, _OK, await self.answer(frame.word, frame.body))
        except RequestError as error:
            reply = _Frame(-frame.number, _FAULT, (error.fault, error.text, error.status))
        except Exception:
            log.exception("a request of another process failed")
            text = "internal error of a process; the log has the details"
            reply = _Frame(-frame.number, _FAULT, (Fault.FAILED, text, None))
        if frame.number:
            with suppress(LineClosedError):
                self._send(reply)
