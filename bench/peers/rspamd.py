"""A server that immediately answers each request as rspamd does, and does not scan the message."""

from __future__ import annotations

import argparse
import asyncio
import re
from functools import partial
from typing import Any

import uvloop

SYMBOLS = b",".join(
    b'"SYMBOL_%d":{"name":"SYMBOL_%d","score":0.1,"metric_score":0.1,"description":"A line that '
    b'says what it is","options":["example.com"]}' % (number, number)
    for number in range(16)
)
EDITS = (
    b',"milter":{"add_headers":{"Authentication-Results":{"value":"mx.example.com;\\r\\n\\tspf=pass'
    b' smtp.mailfrom=a@example.com","order":1}},"remove_headers":{"Authentication-Results":0}}'
)
ANSWER = (
    b'{"is_skipped":false,"score":1.1,"required_score":15.0,"action":"no action","symbols":{%b},'
    b'"messages":{},"message-id":"1@example.com","time_real":0.02%b}'
)
HEAD = b"HTTP/1.1 200 OK\r\nServer: rspamd\r\nContent-Type: application/json\r\n"

_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *([0-9]+)\r\n")


class Answers(asyncio.Protocol):
    """Answers each request of a connection."""

    def __init__(self, answer: bytes, *, closes: bool) -> None:
        self._answer = answer
        self._closes = closes
        self._held = b""

    def connection_made(self, transport: Any) -> None:
        """Store the transport."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer the complete requests."""
        self._held += data
        while (end := self._held.find(b"\r\n\r\n") + 4) > 3:  # noqa: PLR2004 - find() returned no -1
            found = _LENGTH.search(self._held, 0, end)
            end += int(found[1]) if found else 0
            if len(self._held) < end:
                return
            self._held = self._held[end:]
            self._transport.write(self._answer)
            if self._closes:
                self._transport.close()


async def serve(port: int, answer: bytes, *, closes: bool) -> None:
    """Serve until a signal ends the process."""
    made = partial(Answers, answer, closes=closes)
    server = await asyncio.get_running_loop().create_server(made, "127.0.0.1", port)
    await server.serve_forever()


def main() -> None:
    """Read the options and serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--edits", action="store_true")
    parser.add_argument("--closes", action="store_true")
    options = parser.parse_args()
    body = ANSWER % (SYMBOLS, EDITS if options.edits or options.closes else b"")
    end = b"Connection: close\r\n" if options.closes else b""
    answer = HEAD + end + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    uvloop.run(serve(options.port, answer, closes=options.closes))


if __name__ == "__main__":
    main()
