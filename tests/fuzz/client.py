"""A client of the fuzzer: it sends a dialogue in packets, closes, and checks the replies."""

from __future__ import annotations

import asyncio
import re
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from support.cuts import in_loop_time

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable

PATIENCE = 10.0
"""Seconds for a session to end after the client has closed or has stopped sending."""

REPLY = re.compile(rb"[2-5]\d\d[ -]")


class BrokenError(AssertionError):
    """An invariant was violated."""


async def talk(address: Any, data: bytes, end: str, chance: random.Random) -> list[bytes]:
    """Send *data* in packets, end the connection, and return the lines of the replies."""
    loop = asyncio.get_running_loop()
    sock = socket.socket()
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener = asyncio.create_task(asyncio.sleep(0, result=False))
    heard = bytearray()
    reset = False
    try:
        await _in_time(loop.sock_connect(sock, address[:2]), "nobody accepts")
        listener = asyncio.create_task(_listen(sock, heard))
        with suppress(ConnectionError):
            while data:
                size = chance.choice([1, 2, 3, 10, 50, 500, 5000, len(data)])
                sending = loop.sock_sendall(sock, data[:size])
                await _in_time(sending, "the session neither reads nor closes")
                data = data[size:]
                if chance.random() < 0.3:
                    await asyncio.sleep(chance.choice([0, 0, 0.001]))
        if end == "half-close":
            with suppress(OSError):  # The connection was reset.
                sock.shutdown(socket.SHUT_WR)
        if end == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        if end in {"reset", "close"}:
            listener.cancel()
        await _in_time(asyncio.wait([listener]), "the session neither answers nor closes")
        # A client that sends more after QUIT may get a reset, and lose unread replies.
        reset = not listener.cancelled() and listener.result()
    except OSError:
        pass  # The session has closed already.
    finally:
        # The descriptor is reused soon: no task may wait for this socket by then.
        listener.cancel()
        await asyncio.wait([listener])
        sock.close()
    return _lines(bytes(heard), whole=end in {"half-close", "silence"} and not reset)


async def _in_time(happens: Awaitable[object], otherwise: str) -> None:
    """Wait for something, and raise BrokenError with the text *otherwise* after a timeout."""
    try:
        await in_loop_time(happens, PATIENCE)
    except TimeoutError:
        raise BrokenError(otherwise) from None


async def _listen(sock: socket.socket, heard: bytearray) -> bool:
    """Receive all that the session sends; return whether the connection was reset."""
    loop = asyncio.get_running_loop()
    try:
        while part := await loop.sock_recv(sock, 65536):
            heard += part
    except ConnectionError:
        return True
    return False


def _lines(heard: bytes, *, whole: bool) -> list[bytes]:
    """Return the lines of the replies, which must be valid. A TLS alert may follow STARTTLS."""
    lines = heard.split(b"\r\n")
    last = lines.pop()
    for index, line in enumerate(lines):
        if not REPLY.match(line):
            if index and lines[index - 1].startswith(b"220 "):
                return lines[:index]
            raise BrokenError(f"{line!r} is not a reply")
        if b"\r" in line or b"\n" in line or b"\0" in line:
            raise BrokenError(f"{line!r} has a bare CR, LF or NUL")
    if last and not last.startswith(b"\x15\x03"):
        raise BrokenError(f"{last!r} is not a complete reply")
    if whole and not heard:
        raise BrokenError("there was no reply")
    return lines
