"""The eighteen letters that every sender sends: typical messages, and often damaged ones."""

from __future__ import annotations

import random
from typing import NamedTuple

__all__ = ["LETTERS", "MBOX_LINE", "RECIPIENT", "SENDER", "Letter"]

SENDER, RECIPIENT = "a@example.com", "b@example.com"

MBOX_LINE = b"From a@example.com Thu Nov 26 08:00:00 2026"


class Letter(NamedTuple):
    """A message.

    :ivar text: the message; lines end in CRLF
    :ivar as_is: whether a program that reads Unix text also gets CRLF
    :ivar sender: of the envelope, where a program can send it
    """

    name: str
    text: bytes
    as_is: bool = False
    sender: str = SENDER

    def unix(self) -> bytes:
        """Return the message as a Unix program reads it: lines end in LF."""
        return self.text if self.as_is else self.text.replace(b"\r\n", b"\n")


_HEADER = (
    b"From: A <a@example.com>\r\n"
    b"To: b@example.com\r\n"
    b"Date: Thu, 26 Nov 2026 08:00:00 +0000\r\n"
    b"Message-ID: <1@example.com>\r\n"
    b"MIME-Version: 1.0\r\n"
    b"Content-Type: text/plain; charset=utf-8\r\n"
    b"Content-Transfer-Encoding: 8bit\r\n"
)
"""A message that has all fields that a sender adds if they are missing."""


def _letter(name: str, body: bytes, *, more: bytes = b"", as_is: bool = False) -> Letter:
    subject = b"Subject: " + name.encode() + b"\r\n"
    return Letter(name, _HEADER + subject + more + b"\r\n" + body, as_is)


_LARGE = b"".join(b"%07d %s\r\n" % (n, b"x" * 66) for n in range(20 * 1024 * 1024 // 76 + 1))

LETTERS = (
    _letter("CRLF", b"one\r\ntwo\r\n", as_is=True),
    Letter("LF", _letter("LF", b"one\r\n\r\ntwo\r\n").text.replace(b"\r\n", b"\n"), as_is=True),
    _letter("CRLF and LF", b"one\r\ntwo\nthree\r\n\n.\nfour\r\n", as_is=True),
    _letter("lone CR", b"one\rtwo\r\n\rthree\r\n.\r\n"),
    _letter("NUL", b"one\0two\r\n\0\r\n"),
    _letter("8 bits", "gr\u00fc\u00df dich\r\n".encode() + "gr\u00fc\u00df\r\n".encode("latin-1")),
    _letter("dots", b".\r\n..\r\n...\r\n.one\r\ntwo.\r\n. \r\n.\r\n"),
    Letter("only dots", b".\r\n..\r\n.\r\n"),
    _letter("line of 10 KB", b"short\r\n" + b"0123456789" * 1024 + b"\r\nshort\r\n"),
    _letter("header of 10 KB", b"x\r\n", more=b"References:" + b" <x@example.com>" * 640 + b"\r\n"),
    _letter("no final newline", b"one\r\ntwo"),
    _letter("20 MB", _LARGE),
    Letter("no header", b"Dear B,\r\n\r\nno header here.\r\n"),
    Letter("empty", b""),
    Letter(
        "mbox line",
        MBOX_LINE + b"\r\n" + _HEADER + b"Subject: mbox\r\n\r\nFrom x\r\n",
    ),
    Letter(
        "UTF-8 header",
        _HEADER + "Subject: Gr\u00fc\u00dfe\r\nX-Name: \u65e5\u672c\r\n\r\nx\r\n".encode(),
        sender="j\u00f6rg@example.com",
    ),
    _letter("white space", b"one \t \r\n \r\n\t\r\n  two\r\n\r\n \r\n\r\n\r\n"),
    _letter("binary", random.Random(9).randbytes(64 * 1024), as_is=True),
)
