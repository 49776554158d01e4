"""Channel: the connection between the supervisor and one of its processes.

It is a socket pair, of which the process inherits one end. Each end may send requests, and
notifications, which have no answer. A frame has a number, a kind and a body. The number of a
notification is 0, that of an answer is the negative number of its request. An end of file means
that the other process has ended.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import socket
import struct
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from typing import Any, TypeAlias

import msgspec

from smtpd_fork.control_protocol import Fault, RequestError

__all__ = ["Channel", "ChannelClosedError"]

log = logging.getLogger("smtpd_fork.daemon")

_LENGTH = struct.Struct("=I")
"""The number of bytes of a frame; it precedes the frame, which is MessagePack."""

_OK, _FAULT = "ok", "fault"

Answer: TypeAlias = Callable[[str, Any], Any]
"""A function, or coroutine function, that carries out a request, given its kind and its body, and
returns the answer. It may raise a RequestError."""


class _Frame(msgspec.Struct, array_like=True):
    number: int
    kind: str
    body: Any = None


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Frame)


class ChannelClosedError(ConnectionError):
    """The other process has ended."""


class Channel(asyncio.Protocol):
    """One end of the channel.

    :param sock: one socket of the pair; the channel closes it
    :param states: notifications of a state, of which only the last one matters: while the other
        process does not read, only the last one of each kind is kept for it
    :ivar answer: carries out the requests of the other end; set it before :meth:`start`
    """

    def __init__(self, sock: socket.socket, states: Collection[str] = ()) -> None:
        self._sock = sock
        self._state_kinds = states
        self.answer: Answer | None = None
        self._starting: asyncio.Task[None] | None = None
        self._ended = asyncio.Event()
        self._count = 0
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._writable = True
        self._states: dict[str, Any] = {}

    async def start(self) -> None:
        """Start to read and write; a second call has no effect."""
        if self._starting is None:
            self._starting = asyncio.ensure_future(self._start())
        await self._starting

    async def _start(self) -> None:
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_unix_connection(lambda: self, sock=self._sock)

    async def ended(self) -> None:
        """Wait until the other process has ended, or the channel is closed."""
        await self._ended.wait()

    def close(self) -> None:
        """Close the channel; pending requests fail."""
        if self._transport is not None:
            self._transport.abort()
        else:
            self._sock.close()
        self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        """Handle the end of the other process (asyncio.BaseProtocol)."""
        self._end()

    def _end(self) -> None:
        self._ended.set()
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(ChannelClosedError())
        for task in self._tasks:
            task.cancel()

    # -- frames --------------------------------------------------------------------------------

    async def ask(self, kind: str, body: Any = None, *, seconds: float | None = None) -> Any:
        """Send a request to the other process, and return the answer.

        :param seconds: timeout; None: wait until the other process ends
        :raises RequestError: the other process cannot carry out the request
        :raises ChannelClosedError: the other process has ended
        :raises TimeoutError: it has not answered in time
        """
        self._count += 1
        number, future = self._count, asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            self._send(_Frame(number, kind, body))
            async with asyncio.timeout(seconds):
                return await future
        finally:
            self._waiting.pop(number, None)

    def notify(self, kind: str, body: Any = None) -> None:
        """Send a notification to the other process; no error if that process has ended."""
        if kind in self._state_kinds and not self._writable:
            self._states[kind] = body
            return
        with suppress(ChannelClosedError):
            self._send(_Frame(0, kind, body))

    def pause_writing(self) -> None:
        """Handle a full buffer: the other process does not read (asyncio.BaseProtocol)."""
        self._writable = False

    def resume_writing(self) -> None:
        """Handle that the other process reads again (asyncio.BaseProtocol)."""
        self._writable = True
        states, self._states = self._states, {}
        for kind, body in states.items():
            self.notify(kind, body)

    def _send(self, frame: _Frame) -> None:
        if self._transport is None or self._transport.is_closing():
            raise ChannelClosedError
        data = _encoder.encode(frame)
        self._transport.write(_LENGTH.pack(len(data)) + data)

    def data_received(self, data: bytes) -> None:
        """Receive bytes (asyncio.Protocol)."""
        received, at = self._received, 0
        received += data
        while len(received) - at >= _LENGTH.size:
            begin = at + _LENGTH.size
            end = begin + _LENGTH.unpack_from(received, at)[0]
            if end > len(received):
                break
            self._receive(_decoder.decode(bytes(received[begin:end])))
            at = end
        del received[:at]

    def _receive(self, frame: _Frame) -> None:
        if frame.number >= 0:
            self._carry_out(frame)
            return
        future = self._waiting.get(-frame.number)
        if future is None or future.done():
            return
        if frame.kind == _OK:
            future.set_result(frame.body)
        else:
            fault, text, status = frame.body
            future.set_exception(RequestError(Fault(fault), text, status))

    def _carry_out(self, frame: _Frame) -> None:
        """Carry out a request: at once, or in a task if the function is a coroutine function."""
        assert self.answer is not None
        try:
            answer = self.answer(frame.kind, frame.body)
        except Exception as error:  # noqa: BLE001 - it is logged, and its text is sent as the answer
            self._reply(frame, _fault(error))
            return
        if not inspect.iscoroutine(answer):
            self._reply(frame, _Frame(0, _OK, answer))
            return
        task = asyncio.ensure_future(self._answer_later(frame, answer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer_later(self, frame: _Frame, answer: Awaitable[Any]) -> None:
        try:
            reply = _Frame(0, _OK, await answer)
        except Exception as error:  # noqa: BLE001 - as above
            reply = _fault(error)
        self._reply(frame, reply)

    def _reply(self, frame: _Frame, reply: _Frame) -> None:
        if frame.number:
            reply.number = -frame.number
            with suppress(ChannelClosedError):
                self._send(reply)


def _fault(error: Exception) -> _Frame:
    if isinstance(error, RequestError):
        return _Frame(0, _FAULT, (error.fault, error.text, error.status))
    log.error("a request of another process failed", exc_info=error)
    text = "internal error of a process; the log has the details"
    return _Frame(0, _FAULT, (Fault.FAILED, text, None))
