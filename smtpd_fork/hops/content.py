"""A message's content on its way: what it is made of, and the pieces in which it is sent."""

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
    "dotted",
    "facts_at_once",
    "facts_of",
    "has_long_lines",
    "plain",
]

PIECE = 1 << 20
"""Octets that are looked at or sent at once: some milliseconds' work at most."""

SMALL = 1 << 16
"""Octets of a message that is sent as one piece: copying it costs less than a second write."""

LONGEST_LINE = 998
"""Octets of a line without its CR LF (RFC 5321 4.5.3.1.6)."""

_LF, _DOT = 10, 46


class Facts(NamedTuple):
    """What a content is made of.

    :ivar ascii: no octet is above 127
    :ivar bare: there is a CR or a LF that is not part of a CR LF
    :ivar nul: there is a NUL
    """

    ascii: bool = True
    bare: bool = False
    nul: bool = False


PLAIN = Facts()


async def facts_of(content: bytes) -> Facts:
    """Look at a content in pieces, between which the loop goes on."""
    is_ascii, bare, nul, start = True, False, False, 0
    while start < len(content):
        end = start + PIECE
        if content[end - 1 : end + 1] == b"\r\n":
            end += 1  # a CR LF is in one piece
        part = facts_at_once(content[start:end])
        is_ascii, bare, nul = is_ascii and part.ascii, bare or part.bare, nul or part.nul
        start = end
        await asyncio.sleep(0)
    return Facts(is_ascii, bare, nul)


def facts_at_once(part: bytes) -> Facts:
    """Look at a content that is not large, or at a part of one."""
    bare = has_bare(part)
    if part.isascii() and not bare and b"\0" not in part:
        return PLAIN
    return Facts(part.isascii(), bare, b"\0" in part)


def has_long_lines(content: bytes) -> bool:
    """Whether a line has more octets than SMTP allows without BINARYMIME."""
    start, window = 0, LONGEST_LINE + len("\r\n")
    while len(content) - start > LONGEST_LINE:
        end = content.rfind(b"\n", start, start + window)
        if end < 0:
            return True
        start = end + 1
    return False


def dotted(head: bytes, content: bytes) -> Iterator[bytes]:
    """Return the pieces of a message for DATA: dots doubled, with its end (RFC 5321 4.5.2).

    A message whose last line has no CR LF gets one.
    """
    if len(head) + len(content) > SMALL:
        return _dotted_pieces(head, content)
    whole = b"\r\n%b%b" % (head, content)
    end = b".\r\n" if whole.endswith(b"\r\n") else b"\r\n.\r\n"
    if whole.rfind(b"\n.") >= 0:  # it takes a fifth of the time that replace() looks for nothing
        whole = whole.replace(b"\r\n.", b"\r\n..")
    return iter((whole[2:] + end,))


def _dotted_pieces(head: bytes, content: bytes) -> Iterator[bytes]:
    last = _LF
    for part in _pieces(head, content):
        doubled = part.replace(b"\n.", b"\n..")
        if part[0] == _DOT and last == _LF:
            doubled = b"." + doubled
        last = part[-1]
        yield doubled
    yield b".\r\n" if last == _LF else b"\r\n.\r\n"


def plain(head: bytes, content: bytes) -> Iterator[bytes]:
    """Yield a message for BDAT: the command with its size, and every octet (RFC 3030)."""
    yield b"BDAT %d LAST\r\n" % (len(head) + len(content))
    yield from _pieces(head, content)


def _pieces(head: bytes, content: bytes) -> Iterator[bytes]:
    for source in (head, content):
        for start in range(0, len(source), PIECE):
            yield source[start : start + PIECE]
