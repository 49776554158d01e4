"""Convert the lines of a message in pieces, so that a large message needs no second copy."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["spans", "unix_lines"]

PIECE_BYTES = 1 << 18
"""Large enough that the cost of a system call does not matter, and small enough that a thread
converts a piece in a fraction of a millisecond, during which no other thread runs."""


def spans(content: bytes, size: int = PIECE_BYTES) -> Iterator[tuple[int, int]]:
    r"""Yield the start and end of the pieces of *content*.

    A piece ends after a line end. Only a line that is longer than a piece is cut, but never between
    CR and LF.

    :param size: maximum bytes of a piece, at least 2
    """
    start, length = 0, len(content)
    while start < length:
        end = start + size
        if end >= length:
            end = length
        elif behind := content.rfind(b"\n", start, end) + 1:
            end = behind
        elif content[end - 1] == ord("\r"):
            end -= 1
        yield start, end
        start = end


def unix_lines(content: bytes, size: int = PIECE_BYTES) -> Iterator[bytes]:
    """Yield *content* in pieces, with LF instead of CR LF; all other bytes are unchanged."""
    if len(content) <= size:
        yield content.replace(b"\r\n", b"\n")
        return
    for start, end in spans(content, size):
        yield content[start:end].replace(b"\r\n", b"\n")
