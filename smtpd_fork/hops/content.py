"""Examine the content of a message, and split it into pieces for DATA or BDAT."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from smtpd_fork.dialogue.content import has_bare

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "PIECE",
    "PLAIN",
    "Facts",
    "bdat_pieces",
    "data_pieces",
    "facts_of",
    "facts_of_part",
    "has_long_lines",
]

PIECE = 1 << 20
"""Octets that are examined or sent at a time: at most some milliseconds of work."""

SMALL = 1 << 16
"""Maximum octets of a message that is sent as one piece: a copy is faster than a second write."""

LONGEST_LINE = 998
"""Maximum octets of a line without CR LF (RFC 5321 4.5.3.1.6)."""

_LF, _DOT = 10, 46


class Facts(NamedTuple):
    """Properties of a content.

    :ivar ascii: whether no octet is above 127
    :ivar bare: whether there is a CR or LF that is not part of a CR LF
    :ivar nul: whether there is a NUL
    """

    ascii: bool = True
    bare: bool = False
    nul: bool = False


PLAIN = Facts()


async def facts_of(content: bytes) -> Facts:
    """Return the properties of a content of any size; yield to the event loop between pieces."""
    is_ascii, bare, nul, start = True, False, False, 0
    while start < len(content):
        end = start + PIECE
        if content[end - 1 : end + 1] == b"\r\n":
            end += 1  # do not split a CR LF
        part = facts_of_part(content[start:end])
        is_ascii, bare, nul = is_ascii and part.ascii, bare or part.bare, nul or part.nul
        start = end
        await asyncio.sleep(0)
    return Facts(is_ascii, bare, nul)


def facts_of_part(part: bytes) -> Facts:
    """Return the properties of a small content, or of a part of a content."""
    bare = has_bare(part)
    if part.isascii() and not bare and b"\0" not in part:
        return PLAIN
    return Facts(part.isascii(), bare, b"\0" in part)


def has_long_lines(content: bytes) -> bool:
    """Return whether a line has more octets than SMTP allows without BINARYMIME."""
    start, window = 0, LONGEST_LINE + len("\r\n")
    while len(content) - start > LONGEST_LINE:
        end = content.rfind(b"\n", start, start + window)
        if end < 0:
            return True
        start = end + 1
    return False


def data_pieces(head: bytes, content: bytes) -> Iterator[bytes]:
    """Return the pieces of a message for DATA, with dot-stuffing and the end (RFC 5321 4.5.2).

    CR LF is added if the last line has none.
    """
    if len(head) + len(content) > SMALL:
        return _large_data_pieces(head, content)
    whole = b"\r\n%b%b" % (head, content)
    end = b".\r\n" if whole.endswith(b"\r\n") else b"\r\n.\r\n"
    if whole.rfind(b"\n.") >= 0:  # five times faster than a replace() that finds nothing
        whole = whole.replace(b"\r\n.", b"\r\n..")
    return iter((whole[2:] + end,))


def _large_data_pieces(head: bytes, content: bytes) -> Iterator[bytes]:
    last = _LF
    for part in _pieces(head, content):
        doubled = part.replace(b"\n.", b"\n..")
        if part[0] == _DOT and last == _LF:
            doubled = b"." + doubled
        last = part[-1]
        yield doubled
    yield b".\r\n" if last == _LF else b"\r\n.\r\n"


def bdat_pieces(head: bytes, content: bytes) -> Iterator[bytes]:
    """Yield the pieces of a message for BDAT: the command, and the octets unchanged (RFC 3030)."""
    yield b"BDAT %d LAST\r\n" % (len(head) + len(content))
    yield from _pieces(head, content)


def _pieces(head: bytes, content: bytes) -> Iterator[bytes]:
    for part in (head, content):
        for start in range(0, len(part), PIECE):
            yield part[start : start + PIECE]
