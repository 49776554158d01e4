"""A milter with low cost: it gets all events, answers each or none, and may change the header.

The command line selects its behaviour. It speaks version 6 of the protocol, and sends as Sendmail's
library does: one system call per answer, with Nagle's algorithm.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import struct
from typing import TYPE_CHECKING

import uvloop

if TYPE_CHECKING:
    from collections.abc import Sequence

SILENT = 0xFF080
"""Flags of the protocol for no answers before the end of a message (``SMFIP_NR_*``)."""

ALL_ACTIONS = 0x1FF

_LENGTH = struct.Struct(">I")
_QUIET = {b"D", b"A", b"K"}


def frame(command: bytes, data: bytes = b"") -> bytes:
    """Return a frame."""
    return _LENGTH.pack(len(data) + 1) + command + data


GO_ON = frame(b"c")
EDITS = [frame(b"i", b"\0\0\0\1X-Scanned\0yes\0"), frame(b"h", b"X-Score\0" + b"1.0\0")]


class Milter(asyncio.Protocol):
    """Answers the events.

    :param silent: as :data:`SILENT`
    :param edits: whether the milter adds two fields to each header
    """

    def __init__(self, *, silent: bool, edits: bool) -> None:
        self._silent = silent
        self._last = [*(EDITS if edits else ()), GO_ON]
        self._held = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the transport."""
        self._transport = transport
        sock = self._socket = transport.get_extra_info("socket")
        if sock.family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)

    def data_received(self, data: bytes) -> None:
        """Answer the complete frames."""
        held, position = self._held + data, 0
        while len(held) - position >= _LENGTH.size:
            end = position + _LENGTH.size + _LENGTH.unpack_from(held, position)[0]
            if len(held) < end:
                break
            command = held[position + _LENGTH.size : position + _LENGTH.size + 1]
            position = end
            if command == b"Q":
                self._transport.close()
                return
            for answer in self._answers(command):
                os.write(self._socket.fileno(), answer)
        self._held = held[position:]

    def _answers(self, command: bytes) -> Sequence[bytes]:
        if command == b"O":
            protocol = SILENT if self._silent else 0
            return [frame(b"O", struct.pack(">III", 6, ALL_ACTIONS, protocol))]
        if command == b"E":
            return self._last
        return [] if self._silent or command in _QUIET else [GO_ON]


async def serve(arguments: argparse.Namespace) -> None:
    """Serve until a signal ends the process."""

    def made() -> Milter:
        return Milter(silent=arguments.silent, edits=arguments.edits)

    loop = asyncio.get_running_loop()
    if arguments.path:
        server = await loop.create_unix_server(made, arguments.path, backlog=1024)
    else:
        server = await loop.create_server(made, "127.0.0.1", arguments.port, backlog=1024)
    await server.serve_forever()


def main() -> None:
    """Serve as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--path", default="")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--silent", action="store_true")
    parser.add_argument("--edits", action="store_true")
    arguments = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(arguments))


if __name__ == "__main__":
    main()
