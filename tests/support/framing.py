"""Byte streams for tests of framing, and possible contents of a message."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import strategies as st

from smtpd_fork.dialogue.content import BareNewline

SMALL_LINE = 24
"""A limit for command lines that random input exceeds often enough."""

MODES = list(BareNewline)


class Limits(NamedTuple):
    """Receives the calls for the body of a message."""

    size: int = 200
    line: int = 50
    bare: BareNewline = BareNewline.REJECT


TOKENS = [
    b"\r\n",
    b"\r",
    b"\n",
    b".",
    b"..",
    b"\0",
    b"\r\n.\r\n",
    b"\n.\n",
    b"DATA\r\n",
    b"BDAT 7\r\n",
    b"BDAT 1\r\n",
    b"NOOP\r\n",
    b"DATA\n",
    b"x",
    b"x" * 20,
    b"y" * (SMALL_LINE - 1),
    b"y" * SMALL_LINE,
    b"z" * 60,
    b"w" * 201,
]

STREAMS = st.lists(st.sampled_from(TOKENS) | st.binary(max_size=4), max_size=16).map(b"".join)
