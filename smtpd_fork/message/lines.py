"""Lines of a message, in pieces: a large message is converted without a second copy of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["spans", "unix_lines"]

PIECE_BYTES = 1 << 18
"""Large beside the cost of a system call; a fraction of a millisecond, in which a thread that
converts a piece lets no other run."""


def spans(content: bytes, size: int = PIECE_BYTES) -> Iterator[tuple[int, int]]:
    r"""Yield start and end of the pieces of *content*.

    A piece ends behind a line end; only a line that is longer than a piece is cut, and never
    between CR and LF.

    :param size: of a piece, in bytes, at most; 2 or more
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
    """Yield *content* in pieces, with LF in place of each CR LF; all other bytes stay."""
    if len(content) <= size:
        yield content.replace(b"\r\n", b"\n")
        return
    for start, end in spans(content, size):
        yield content[start:end].replace(b"\r\n", b"\n")
