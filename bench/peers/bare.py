"""The lower limit for Python: a protocol on uvloop that answers, and parses almost nothing.

It is no usable server: it does not check addresses, limits or errors. Its cost is the least that an
SMTP server on this event loop can have.
"""

from __future__ import annotations

import argparse
import asyncio
from typing import cast

import uvloop

BACKLOG = 1024
END = b"\r\n.\r\n"
_view = memoryview(bytearray(256 * 1024))


class Bare(asyncio.BufferedProtocol):
    """Answers each command with 250, and each message at its apparent end."""

    __slots__ = ("_in_data", "_stream")

    def __init__(self) -> None:
        self._in_data = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the greeting."""
        self._stream = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it
        self._stream.write(b"220 localhost ESMTP\r\n")

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        """Return the buffer that all connections share."""
        return _view

    def buffer_updated(self, nbytes: int) -> None:
        """Answer the commands in the buffer."""
        data = _view[:nbytes].tobytes()
        if self._in_data:
            if data.endswith(END):
                self._in_data = False
                self._stream.write(b"250 ok\r\n")
            return
        out = []
        for line in data.split(b"\r\n")[:-1]:
            word = line[:4].upper()
            if word == b"QUIT":
                self._stream.write(b"221 bye\r\n")
                self._stream.close()
                return
            self._in_data = word == b"DATA"
            out.append(b"354 go on\r\n" if self._in_data else b"250 ok\r\n")
        self._stream.write(b"".join(out))

    def eof_received(self) -> bool:
        """Close the connection."""
        return False


async def serve(arguments: argparse.Namespace) -> None:
    """Serve until a signal ends the process."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Bare, arguments.host, arguments.port, backlog=BACKLOG)
    async with server:
        await server.serve_forever()


def main() -> None:
    """Read the options and serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    uvloop.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
