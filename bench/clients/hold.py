"""Holds idle sessions: each line on standard input is how many there are to be."""

from __future__ import annotations

import sys
from itertools import cycle
from resource import RLIMIT_NOFILE, getrlimit, setrlimit
from typing import TYPE_CHECKING

from bench.clients.dialogue import answer, connect, options, read_reply

if TYPE_CHECKING:
    import socket

BATCH = 500
"""Opened at once: some servers let each client wait a moment for its greeting."""

SOURCES = cycle([f"127.0.0.{n}" for n in range(11, 16)])


class Held:
    """Sessions that have read the greeting and said EHLO, and say no more."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._sessions: list[socket.socket] = []

    def have(self, wanted: int) -> None:
        """Open or close as many as it takes."""
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
    """Do as told until standard input ends."""
    hard = getrlimit(RLIMIT_NOFILE)[1]
    setrlimit(RLIMIT_NOFILE, (hard, hard))
    held = Held(options()["port"])
    for line in sys.stdin:
        held.have(int(line))
        answer(held=int(line))


if __name__ == "__main__":
    main()
