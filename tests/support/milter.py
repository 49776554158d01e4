"""A fake milter: it sends the answers that a test sets, valid or not."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from support.scripted_server import ScriptedServer

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

__all__ = ["TestMilter", "changed", "frame"]

_SILENT = {b"L": 0x80, b"C": 0x1000, b"H": 0x2000, b"M": 0x4000, b"R": 0x8000, b"T": 0x10000,
           b"N": 0x40000, b"B": 0x80000}  # fmt: skip


def frame(command: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data) + 1) + command + data


def changed(number: int, name: bytes, value: bytes) -> bytes:
    """Return the data of a change of a header field, or of an insertion."""
    return struct.pack(">I", number) + name + b"\0" + value + b"\0"


@dataclass
class TestMilter(ScriptedServer):
    """A milter whose answers a test sets, and which stores the received commands.

    :ivar answers: by command: the frames of the answer; default: "continue"
    :ivar edits: frames that it sends at the end of the message before the answer
    :ivar stops_at: the command after which it closes the connection
    :ivar heals: whether it closes the connection only once
    :ivar says: what it sends in place of its options
    :ivar heard: commands and data, without macros
    :ivar macros: by command and name
    """

    __test__ = False

    version: int = 6
    actions: int = 0x1FF
    protocol: int = 0
    symbols: bytes = b""
    answers: dict[bytes, bytes] = field(default_factory=dict)
    edits: Sequence[bytes] = ()
    stops_at: bytes = b""
    heals: bool = False
    says: bytes | None = None
    heard: list[tuple[bytes, bytes]] = field(default_factory=list)
    macros: dict[bytes, dict[str, str]] = field(default_factory=dict)
    offered: bytes = b""

    @property
    def commands(self) -> bytes:
        return b"".join(command for command, _ in self.heard)

    def data(self, command: bytes) -> list[bytes]:
        return [data for each, data in self.heard if each == command]

    @property
    def fields(self) -> list[tuple[bytes, bytes]]:
        return [(n, v) for n, v, _ in (data.split(b"\0") for data in self.data(b"L"))]

    @property
    def body(self) -> bytes:
        return b"".join(self.data(b"B"))

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            (length,) = struct.unpack(">I", await reader.readexactly(4))
            content = await reader.readexactly(length)
            command, data = content[:1], content[1:]
            if command == b"D":
                words = data[1:].split(b"\0")
                names = [word.decode().strip("{}") for word in words[:-1:2]]
                self.macros[data[:1]] = dict(
                    zip(names, (word.decode() for word in words[1::2]), strict=True)
                )
                continue
            if command != b"O":
                self.heard.append((command, data))
            if command in {b"Q", self.stops_at}:
                if self.heals:
                    self.stops_at = b""
                return
            writer.write(self._answer(command, data))
            await writer.drain()

    def _answer(self, command: bytes, data: bytes) -> bytes:
        if command == b"O":
            self.offered = data
            options = struct.pack(">III", self.version, self.actions, self.protocol)
            return frame(b"O", options + self.symbols) if self.says is None else self.says
        if command == b"A":
            return b""
        if command in self.answers:
            return self.answers[command]
        if self.protocol & _SILENT.get(command, 0):
            return b""
        return b"".join(self.edits if command == b"E" else ()) + frame(b"c")
