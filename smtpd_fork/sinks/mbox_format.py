"""The format mboxrd: messages in one file, each below a line ``From SENDER DATE``.

A line of a message that begins with ``From ``, or with ``>`` and ``From ``, gets another ``>``: so
a reader can undo it. Lines end in LF; an empty line ends each message.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime

from smtpd_fork.message import spans

__all__ = ["from_line", "mbox_pieces"]

_FIRST = re.compile(rb">*From ")
_QUOTED = re.compile(rb"\n(>+From )")
_NOT_IN_A_WORD = re.compile(r"[^!-~]")

PIECE_BYTES = 1 << 16
"""Lines ``>From`` alone take 10 ms in so many bytes, in which no other thread runs."""


def from_line(sender: str, when: datetime) -> bytes:
    """Return the line above a message.

    :param sender: empty for the null sender
    :param when: with its time zone; the line has UTC
    """
    name = _NOT_IN_A_WORD.sub("-", sender) or "MAILER-DAEMON"
    return f"From {name} {when.astimezone(UTC).ctime()}\n".encode()


def mbox_pieces(first: bytes, head: bytes, content: bytes) -> Iterator[bytes]:
    """Yield a message as an mbox file has it, in pieces.

    :param first: the line above it
    :param head: fields, none of which begins with ``From ``
    :param content: the message below them; lines end in CR LF
    """
    head = head.replace(b"\r\n", b"\n")
    if not content:
        yield b"%b%b\n" % (first, head)
        return
    yield first + head
    for start, end in spans(content, PIECE_BYTES):
        begins_line = start == 0 or content[start - 1] == ord("\n")
        # Of the whole content: a line may be longer than a piece.
        mark = b">" if begins_line and _FIRST.match(content, start) else b""
        piece = content[start:end].replace(b"\r\n", b"\n")
        if b"From " in piece:
            piece = _QUOTED.sub(rb"\n>\1", piece).replace(b"\nFrom ", b"\n>From ")
        yield mark + piece
    yield b"\n" if content.endswith(b"\n") else b"\n\n"
