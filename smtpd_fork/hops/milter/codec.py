"""Frames of the milter protocol. Sans-io.

A frame is a length (32 bits, network byte order), a command of one octet, and data; the length
includes command and data. Texts in the data end with NUL.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "LENGTH",
    "LONGEST_FRAME",
    "FrameReader",
    "MilterGarbageError",
    "frame",
    "text_of",
    "texts",
]

LONGEST_FRAME = 64 << 20
"""Maximum bytes of a frame of a milter; more than any body that it may replace in one frame."""

LENGTH = struct.Struct(">I")
"""The length at the beginning of a frame."""


class MilterGarbageError(ValueError):
    """A milter has violated the protocol."""


def frame(command: bytes, data: bytes | memoryview = b"") -> bytes:
    """Return a frame."""
    return b"".join((LENGTH.pack(len(data) + 1), command, data))


def texts(data: bytes, least: int, most: int) -> list[bytes]:
    """Return the texts in the data of a frame.

    :raises MilterGarbageError: the number of texts is not between *least* and *most*
    """
    parts = data.split(b"\0", most + 1)
    if parts[-1] == b"":
        parts.pop()
    if not least <= len(parts) <= most:
        raise MilterGarbageError(f"it sends a frame of {len(parts)} texts instead of {least}")
    return parts


def text_of(data: str) -> bytes:
    """Return the octets of a text, cut at its first NUL, with a final NUL."""
    octets = data.encode("utf-8", "surrogateescape")
    return (octets.partition(b"\0")[0] if b"\0" in octets else octets) + b"\0"


class FrameReader:
    """Splits a stream into frames, independently of how it is received.

    :param longest: maximum bytes of a frame
    """

    __slots__ = ("_buffer", "_longest")

    def __init__(self, longest: int = LONGEST_FRAME) -> None:
        self._buffer = bytearray()
        self._longest = min(longest, LONGEST_FRAME)

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield command and data of the frames that are complete with *data*.

        :raises MilterGarbageError: a frame has no command, or is too long
        """
        self._buffer += data
        position = 0
        try:
            while len(self._buffer) - position >= LENGTH.size:
                (length,) = LENGTH.unpack_from(self._buffer, position)
                if not 0 < length <= self._longest:
                    raise MilterGarbageError(f"it sends a frame of {length} bytes")
                begin = position + LENGTH.size
                if len(self._buffer) - begin < length:
                    return
                position = begin + length
                yield (
                    bytes(self._buffer[begin : begin + 1]),
                    bytes(self._buffer[begin + 1 : position]),
                )
        finally:
            del self._buffer[:position]

    @property
    def buffered(self) -> int:
        """The number of bytes of an incomplete frame."""
        return len(self._buffer)
