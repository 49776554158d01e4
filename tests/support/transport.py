"""A transport on one end of a connection; a test has the other end."""

from __future__ import annotations

import asyncio
import socket
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

from smtpd_fork.smtp.socket_transport import SocketTransport

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smtpd_fork.smtp.socket_poll import SocketPoll

LOST = ("lost", None)


class Recorder(asyncio.Protocol):
    """Records the calls of its methods; *keep_open*: not closed at the end of input."""

    def __init__(self, *, keep_open: bool = False) -> None:
        self.events: list[Any] = []
        self.data = b""
        self.keep_open = keep_open
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.events.append("made")

    def data_received(self, data: bytes) -> None:
        self.data += data

    def eof_received(self) -> bool:
        self.events.append("eof")
        return self.keep_open

    def pause_writing(self) -> None:
        self.events.append("pause")

    def resume_writing(self) -> None:
        self.events.append("resume")

    def connection_lost(self, error: Exception | None) -> None:
        self.events.append(("lost", error))


@contextmanager
def pair(*, tcp: bool = False) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Yield two ends of a connection; the second is the client's."""
    if tcp:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            theirs = socket.create_connection(listener.getsockname())
            ours, _ = listener.accept()
    else:
        ours, theirs = socket.socketpair()
    with closing(ours), closing(theirs):
        theirs.setblocking(False)
        yield ours, theirs


def begun(poll: SocketPoll, sock: socket.socket, protocol: Any) -> Any:
    transport = SocketTransport(poll, sock)
    transport.begin(protocol)
    return transport


async def receive(sock: socket.socket, size: int) -> bytes:
    """Return *size* bytes, or those until the end."""
    loop, got = asyncio.get_running_loop(), b""
    while len(got) < size and (part := await loop.sock_recv(sock, 1024 * 1024)):
        got += part
    return got
