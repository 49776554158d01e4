"""Hold idle sessions: each line on standard input is the number of sessions to hold."""

from __future__ import annotations

import sys
from itertools import cycle
from resource import RLIMIT_NOFILE, getrlimit, setrlimit
from typing import TYPE_CHECKING

from bench.clients.dialogue import answer, connect, options, read_reply

if TYPE_CHECKING:
    import socket

BATCH = 500
"""Connections opened at the same time: some servers delay each greeting."""

SOURCES = cycle([f"127.0.0.{n}" for n in range(11, 16)])


class Held:
    """Sessions that have read the greeting, have sent EHLO, and stay idle."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._sessions: list[socket.socket] = []

    def have(self, wanted: int) -> None:
        """Open or close sessions until *wanted* are open."""
        for sock in self._sessions[wanted:]:
            sock.close()
        del self._sessions[wanted:]
        while (missing := wanted - len(self._sessions)) > 0:
            batch = [connect(self._port, next(SOURCES)) for _ in range(min(BATCH, missing))]
            for sock in batch:
                _expect(sock, b"220")
            for sock in batch:
                sock.sendall(b"EHLO client.example\r\n")
            for sock in batch:
                _expect(sock, b"250")
            self._sessions += batch


def _expect(sock: socket.socket, code: bytes) -> None:
    reply = read_reply(sock)
    if not reply.startswith(code):
        raise ConnectionError(f"not {code!r}: {reply!r}")


def main() -> None:
    """Execute the lines of standard input until it ends."""
    hard = getrlimit(RLIMIT_NOFILE)[1]
    setrlimit(RLIMIT_NOFILE, (hard, hard))
    held = Held(options()["port"])
    for line in sys.stdin:
        held.have(int(line))
        answer(held=int(line))


if __name__ == "__main__":
    main()
