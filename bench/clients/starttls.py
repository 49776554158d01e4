"""Send messages, each over its own connection with STARTTLS.

Each line on standard input is a number of messages, and ``full`` or ``resumed``: the kind of TLS
handshake.
"""

from __future__ import annotations

import ssl
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from bench.clients.dialogue import answer, connect, options, read_reply

LINE = b"X" * 78 + b"\r\n"


class Sender:
    """Sends messages one after another.

    :param resume: whether each connection resumes the TLS session of the previous one
    :ivar resumed: the number of resumed sessions
    """

    def __init__(self, port: int, context: ssl.SSLContext, message: bytes, *, resume: bool) -> None:
        self._port = port
        self._context = context
        self._message = message
        self._resume = resume
        self._last: ssl.SSLSession | None = None
        self.resumed = 0

    def send(self, count: int) -> None:
        """Send *count* messages."""
        for _ in range(count):
            self._send()

    def _send(self) -> None:
        with connect(self._port, "127.0.0.1") as plain:
            for command in (None, b"EHLO client.example\r\n", b"STARTTLS\r\n"):
                if command is not None:
                    plain.sendall(command)
                _expect(b"2", read_reply(plain))
            with self._context.wrap_socket(
                plain, server_hostname="localhost", session=self._last
            ) as sock:
                self._deliver(sock)
                self.resumed += bool(sock.session_reused)
                if self._resume:
                    self._last = sock.session

    def _deliver(self, sock: ssl.SSLSocket) -> None:
        for command, code in (
            (b"EHLO client.example\r\n", b"250"),
            (b"MAIL FROM:<a@example.com>\r\n", b"250"),
            (b"RCPT TO:<b@example.com>\r\n", b"250"),
            (b"DATA\r\n", b"354"),
            (self._message, b"250"),
            (b"QUIT\r\n", b"221"),
        ):
            sock.sendall(command)
            _expect(code, read_reply(sock))


def _expect(code: bytes, reply: bytes) -> None:
    if not reply.startswith(code):
        raise ConnectionError(f"not {code!r}: {reply!r}")


def main() -> None:
    """Send as many messages as each line says."""
    given = options()
    context = ssl.create_default_context(cafile=given["authority"])
    message = b"Subject: measured\r\n\r\n" + LINE * (given["size"] // len(LINE)) + b".\r\n"
    at_once = given["at_once"]
    with ThreadPoolExecutor(at_once) as pool:
        for line in sys.stdin:
            count, handshake = line.split()
            resume = handshake == "resumed"
            senders = [
                Sender(given["port"], context, message, resume=resume) for _ in range(at_once)
            ]
            shares = [int(count) // at_once + (n < int(count) % at_once) for n in range(at_once)]
            began = time.monotonic()
            for _ in pool.map(Sender.send, senders, shares):
                pass
            resumed = sum(sender.resumed for sender in senders)
            answer(resumed=resumed, seconds=time.monotonic() - began)


if __name__ == "__main__":
    main()
