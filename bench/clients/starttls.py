"""Sends messages, each over a TLS connection of its own that begins with STARTTLS."""

from __future__ import annotations

import ssl
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat

from bench.clients.dialogue import answer, connect, options, read_reply

LINE = b"X" * 78 + b"\r\n"


def send(port: int, source: str, context: ssl.SSLContext, message: bytes) -> None:
    """Send one message."""
    with connect(port, source) as plain:
        for command in (None, b"EHLO client.example\r\n", b"STARTTLS\r\n"):
            if command is not None:
                plain.sendall(command)
            _expect(b"2", read_reply(plain))
        with context.wrap_socket(plain, server_hostname="localhost") as sock:
            for command, code in (
                (b"EHLO client.example\r\n", b"250"),
                (b"MAIL FROM:<a@example.com>\r\n", b"250"),
                (b"RCPT TO:<b@example.com>\r\n", b"250"),
                (b"DATA\r\n", b"354"),
                (message, b"250"),
                (b"QUIT\r\n", b"221"),
            ):
                sock.sendall(command)
                _expect(code, read_reply(sock))


def _expect(code: bytes, reply: bytes) -> None:
    if not reply.startswith(code):
        raise ConnectionError(f"not {code!r}: {reply!r}")


def main() -> None:
    """Send as many messages as each line says."""
    told = options()
    context = ssl.create_default_context(cafile=told["authority"])
    message = b"Subject: measured\r\n\r\n" + LINE * (told["size"] // len(LINE)) + b".\r\n"
    with ThreadPoolExecutor(told["at_once"]) as pool:
        for line in sys.stdin:
            count = int(line)
            began = time.monotonic()
            everything = repeat((told["port"], "127.0.0.1", context, message), count)
            for _ in pool.map(lambda one: send(*one), everything):
                pass
            answer(sent=count, seconds=time.monotonic() - began)


if __name__ == "__main__":
    main()
