"""Streams cut into packets, for a session without a socket and for a server on a socket."""

from __future__ import annotations

import asyncio
import fcntl
import re
import socket
import ssl
import termios
from contextlib import suppress
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from support.client import PATIENCE
from support.server import running

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable, Iterator, Sequence

    from smtpd_fork import Server
    from smtpd_fork.smtp import SMTP


T = TypeVar("T")


def cut(stream: bytes, places: Iterable[int]) -> list[bytes]:
    """Return *stream* in packets that end at the offsets *places*, modulo its length."""
    edges = [0, *sorted({place % (len(stream) + 1) for place in places}), len(stream)]
    return [stream[start:end] for start, end in pairwise(edges) if start < end]


def all_cuts(stream: bytes, *, near: int = 5, start: int = 0) -> Iterator[list[bytes]]:
    """Return *stream* cut once at each byte, cut at two near offsets, and cut into single bytes."""
    for first in range(start, len(stream)):
        for second in range(first, min(first + near, len(stream))):
            yield cut(stream, [first, second])
    yield cut(stream, range(len(stream)))


# -- without a socket ------------------------------------------------------------------------------


class Transport:
    """Stores the bytes that a session sends, in place of a transport with a socket."""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.closed = False

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.sent += data

    def close(self) -> None:
        self.closed = True

    abort = close
    write_eof = close  # The session ends its replies with either, which is what counts here.

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        pass

    resume_reading = pause_reading

    def get_extra_info(self, name: str) -> Any:
        return ("192.0.2.1", 25) if name == "peername" else None


class Result(NamedTuple):
    """The result of a stream: all sent bytes, whether the session closed, and the messages."""

    sent: bytes
    closed: bool
    messages: list[Any]


_ID = re.compile(rb" \[[0-9a-f]+-[0-9a-f]+\](?=\r\n)")


def without_ids(heard: bytes) -> bytes:
    """Return replies without session ids, so that the replies of two sessions can be compared."""
    return _ID.sub(b"", heard)


def another(model: SMTP) -> SMTP:
    """Return a session with the same shared state as *model*."""
    return type(model)(model.event_handler, shared=model.connection.shared)


async def dialogue(session: SMTP, packets: Iterable[bytes], *, patient: bool = True) -> Result:
    """Feed *packets* to a new session, whose handler keeps messages in ``got``.

    :param patient: whether to wait, before each packet, for all replies to the previous ones
    """
    transport = Transport()
    session.connection_made(transport)  # type: ignore[arg-type]  # has the needed methods
    for packet in packets:
        session.data_received(packet)
        if patient:
            await _settled(session)
    await _settled(session)
    result = Result(without_ids(bytes(transport.sent)), transport.closed, session.event_handler.got)
    connection = session.connection
    if connection.work is not None:
        connection.cut()
        await _settled(session)
    session.connection_lost(None)
    assert connection.shared.budget.used == 0
    return result


def _waits_for_client(session: SMTP) -> bool:
    waiter = session.connection.dialogue.awaited
    reads_header = session.connection.proxy_reader is not None
    return reads_header or (waiter is not None and not waiter.done())


async def _settled(session: SMTP) -> None:
    """Wait until every running task waits for the client."""
    for _ in range(10_000):
        if session.connection.waits:
            return
        if _waits_for_client(session):
            # Three more iterations: the session may not have processed the last packet yet.
            for _ in range(3):
                await asyncio.sleep(0)
            if _waits_for_client(session):
                return
        await asyncio.sleep(0)
    raise AssertionError("the session does not become idle")


async def in_loop_time(happens: Awaitable[T], seconds: float) -> T:
    """Wait up to *seconds* of loop activity: time in which the process was stopped does not count.

    :raises TimeoutError: it has not happened in this time
    """
    task = asyncio.ensure_future(happens)
    try:
        for _ in range(100):
            if (await asyncio.wait([task], timeout=seconds / 100))[0]:
                return await task
        raise TimeoutError
    finally:
        task.cancel()


# -- over the wire ---------------------------------------------------------------------------------


class Cutter:
    """A client that cuts what it sends into packets at given offsets.

    :param places: offsets at which a packet ends; None: each byte is a packet
    """

    def __init__(self, server: Server, places: Sequence[int] | None) -> None:
        self._server = server
        self._places = places
        self._sent = 0
        self.sock = socket.socket()
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def connect(self) -> None:
        await asyncio.get_running_loop().sock_connect(self.sock, self._server.addresses[0][:2])

    async def send(self, data: bytes) -> None:
        """Send *data*; after each packet wait until the server has read it, if it reads."""
        count = len(data)
        places = [place - self._sent for place in self._places or () if place > self._sent]
        within = range(count) if self._places is None else [p for p in places if p < count]
        packets = cut(data, within)
        self._sent += count
        with suppress(ConnectionError):
            for packet in packets:
                await asyncio.get_running_loop().sock_sendall(self.sock, packet)
                await self._taken()

    async def _taken(self) -> None:
        for turn in range(20):
            await asyncio.sleep(0)
            if turn > 2 and not any(_unread(fd) for fd in _descriptors(self._server)):
                return

    async def read(self) -> bytes:
        """Return the next bytes; nothing at the end of the connection."""
        with suppress(ConnectionError):
            receiving = asyncio.get_running_loop().sock_recv(self.sock, 65536)
            return await in_loop_time(receiving, PATIENCE)
        return b""

    async def rest(self) -> bytes:
        """Return all bytes until the end of the connection."""
        heard = b""
        while part := await self.read():
            heard += part
        return heard


def _descriptors(server: Server) -> list[int]:
    transports = [session.transport for session in running(server).sessions._tickets]
    sockets = [t.get_extra_info("socket") for t in transports if t is not None]
    sockets += [shake.sock for shake in running(server).sessions._handshakes.values()]
    return [sock.fileno() for sock in sockets if sock is not None]


def _unread(descriptor: int) -> int:
    if descriptor < 0:
        return 0
    try:
        return int.from_bytes(fcntl.ioctl(descriptor, termios.FIONREAD, b"\0" * 4), "little")
    except OSError:
        return 0


async def replies_to(server: Server, stream: bytes, places: Sequence[int] | None) -> bytes:
    """Return all that a server sends to a client whose *stream* ends the session."""
    cutter = Cutter(server, places)
    try:
        await cutter.connect()
        await cutter.send(stream)
        return without_ids(await cutter.rest())
    finally:
        cutter.sock.close()


async def replies_under_tls(
    server: Server,
    context: ssl.SSLContext,
    before: bytes,
    stream: bytes,
    places: Sequence[int] | None,
) -> bytes:
    """Return all that a server sends under TLS; the ClientHello is in one packet with *before*."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    cutter = Cutter(server, places)
    heard = b""
    try:
        await cutter.connect()
        with suppress(ssl.SSLWantReadError):
            tls.do_handshake()
        await cutter.send(before + outgoing.read())
        if before.endswith(b"STARTTLS\r\n"):  # the replies before the handshake are plaintext
            plain, ready = b"", b"Ready to start TLS\r\n"
            while ready not in plain:
                part = await cutter.read()
                assert part, plain
                plain += part
            incoming.write(plain.partition(ready)[2])
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                part = await cutter.read()
                assert part, "no handshake"
                incoming.write(part)
        tls.write(stream)
        await cutter.send(outgoing.read())
        while True:
            try:
                part = tls.read(65536)
            except ssl.SSLWantReadError:
                more = await cutter.read()
                if not more:
                    return without_ids(heard)
                incoming.write(more)
                continue
            if not part:
                return without_ids(heard)
            heard += part
    finally:
        cutter.sock.close()
