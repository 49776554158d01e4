"""The least that Python can do: a protocol on uvloop that answers, and looks at next to nothing.

No server: it knows no address, no limit and no mistake. It shows what is left to win.
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
    """Answers each command with 250, and a message when it seems to end."""

    __slots__ = ("_in_data", "_stream")

    def __init__(self) -> None:
        self._in_data = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet."""
        self._stream = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it
        self._stream.write(b"220 localhost ESMTP\r\n")

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio calls it so
        """Return the one buffer of all."""
        return _view

    def buffer_updated(self, nbytes: int) -> None:
        """Answer."""
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
        """Close."""
        return False


async def serve(arguments: argparse.Namespace) -> None:
    """Serve until ended by a signal."""
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
