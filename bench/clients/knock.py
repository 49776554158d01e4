"""Connect where the server refuses, read the reply and close: N times, or until a line says stop.

The client first opens as many sessions as the limit of its address permits, so that the server
refuses each later connection.
"""

from __future__ import annotations

import errno
import selectors
import sys
import time
from typing import TYPE_CHECKING, cast

from bench.clients.dialogue import HOST, TIMEOUT, answer, connect, options, read_reply, unconnected

if TYPE_CHECKING:
    import socket

_SHORT_MOMENT = 0.001


class Knocker:
    """Clients that connect from one address at the same time.

    :param port: of the server
    :param source: their address
    :param at_once: the number of clients
    """

    def __init__(self, port: int, source: str, at_once: int) -> None:
        self._port = port
        self._source = source
        self._at_once = at_once
        self._selector = selectors.DefaultSelector()
        self._refused = self._other = self._open = 0

    def knock(self, count: int, *, stop_at_input: bool) -> None:
        """Connect *count* times, and send the results to the parent process."""
        if stop_at_input:
            self._selector.register(sys.stdin, selectors.EVENT_READ)
        began = time.monotonic()
        while self._refused + self._other < count:
            self._fill(count)
            ready = self._selector.select(TIMEOUT)
            if not ready:
                raise TimeoutError("refused clients get no answer")
            if any(key.fileobj is sys.stdin for key, _ in ready):
                break
            for key, _ in ready:
                self._answered(cast("socket.socket", key.fileobj))
        seconds = time.monotonic() - began
        answer(refused=self._refused, other=self._other, seconds=seconds)

    def _fill(self, count: int) -> None:
        """Run up to *at_once* clients at the same time until no more are needed."""
        wanted = min(self._at_once, count - self._refused - self._other)
        while self._open < wanted:
            sock = unconnected(self._source)
            sock.setblocking(False)
            if sock.connect_ex((HOST, self._port)) not in {0, errno.EINPROGRESS}:
                sock.close()
                self._other += 1
                time.sleep(_SHORT_MOMENT)
                return
            self._selector.register(sock, selectors.EVENT_READ)
            self._open += 1

    def _answered(self, sock: socket.socket) -> None:
        self._selector.unregister(sock)
        try:
            reply = sock.recv(512)
        except OSError:
            reply = b""
        sock.close()
        self._open -= 1
        if reply.startswith(b"421"):
            self._refused += 1
        else:
            self._other += 1


def main() -> None:
    """Hold sessions, then execute each line: a number of refusals, or ``flood`` without an end."""
    given = options()
    port, source = given["port"], given["source"]
    held = [connect(port, source) for _ in range(given["hold"])]
    for sock in held:
        greeting = read_reply(sock)
        if not greeting.startswith(b"220"):
            raise ConnectionError(f"the greeting is {greeting!r}")
    answer(held=len(held))
    word = sys.stdin.readline().strip()
    flood = word == "flood"
    count = sys.maxsize if flood else int(word)
    Knocker(port, source, given["at_once"]).knock(count, stop_at_input=flood)


if __name__ == "__main__":
    main()
