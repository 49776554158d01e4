"""The format mboxrd: messages in one file, each below a line ``From SENDER DATE``.

A line of a message that begins with ``From ``, after any number of ``>``, gets another ``>``, so
that a reader can undo it. Lines end in LF; an empty line ends each message.
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
"""Bytes that are converted at a time. In the worst case, only lines ``>From``, this takes 10 ms, in
which no other thread runs."""


def from_line(sender: str, when: datetime) -> bytes:
    """Return the line above a message.

    :param sender: the sender; empty for the null sender
    :param when: the time, with a time zone; the line contains it in UTC
    """
    name = _NOT_IN_A_WORD.sub("-", sender) or "MAILER-DAEMON"
    return f"From {name} {when.astimezone(UTC).ctime()}\n".encode()


def mbox_pieces(first: bytes, head: bytes, content: bytes) -> Iterator[bytes]:
    """Yield a message in the format of an mbox file, in pieces.

    :param first: the line ``From SENDER DATE``
    :param head: header fields, none of which begins with ``From ``
    :param content: the message below them; lines end in CR LF
    """
    head = head.replace(b"\r\n", b"\n")
    if not content:
        yield b"%b%b\n" % (first, head)
        return
    yield first + head
    for start, end in spans(content, PIECE_BYTES):
        begins_line = start == 0 or content[start - 1] == ord("\n")
        # Matched against the whole content, because a line may be longer than a piece.
        mark = b">" if begins_line and _FIRST.match(content, start) else b""
        piece = content[start:end].replace(b"\r\n", b"\n")
        if b"From " in piece:
            piece = _QUOTED.sub(rb"\n>\1", piece).replace(b"\nFrom ", b"\n>From ")
        yield mark + piece
    yield b"\n" if content.endswith(b"\n") else b"\n\n"
