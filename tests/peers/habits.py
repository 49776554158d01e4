"""Changes that each sender makes to a message, with the reason. All else has to arrive as sent."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from peers.letters import MBOX_LINE

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ADDED_FIELDS", "HABITS", "NO_EMPTY_LINE", "REFUSALS", "lines_of_unix"]

ADDED_FIELDS: dict[str, set[bytes]] = {
    "Exim": {b"Received", b"Message-Id", b"From", b"Date"},
    "Sendmail": {b"Received", b"Message-Id", b"From", b"Date"},
    "Postfix": {b"Received", b"Message-Id", b"From", b"Date"},
    "dma": {b"Received", b"Message-Id", b"From", b"Date"},
    "nullmailer": {b"Message-Id", b"From", b"Date", b"Cc"},
    "msmtp": {b"Message-ID", b"From", b"Date"},
}
"""Header fields that a sender adds: an MTA adds Received, and fields that are missing."""

NO_EMPTY_LINE = {"dma", "msmtp"}
"""Senders that put no empty line between added fields and the text of a message with no header."""


class Habit(NamedTuple):
    """Changes that a sender makes to a letter.

    :ivar of: returns what is sent of the given message
    :ivar undo: returns what is compared, of what arrived and of what was sent
    """

    reason: str
    of: Callable[[bytes], bytes] = bytes
    undo: Callable[[bytes], bytes] = bytes


def lines_of_unix(text: bytes) -> bytes:
    """Return *text* with each CR LF, lone CR and lone LF as the LF that is stored."""
    return re.sub(rb"\r*\n|\r", b"\n", text)


_MBOX = Habit(
    "a line of mbox is the envelope's, and is taken off",
    lambda text: text.removeprefix(MBOX_LINE + b"\r\n"),
)
_FOLD = Habit(
    "long lines are folded at 990 octets (L=990, as in its own sendmail.cf), some only at 1061",
    undo=lambda text: text.replace(b"!\n ", b""),
)
_FOLD_AND_CUT = Habit(
    "as above, and a field is cut to 2303 octets",
    of=lambda text: re.sub(rb"(References:.{2292}).*", rb"\1", text),
    undo=_FOLD.undo,
)
_SPACES = Habit(
    "its smtp client sends a space for a lone CR",
    of=lambda text: re.sub(rb"\r(?!\n)", b" ", text),
)
_FOLD_AT_998 = Habit(
    "longer lines are folded (smtp_line_length_limit)",
    undo=lambda text: text.replace(b"\n ", b""),
)
_NO_FIRST_LINE = Habit(
    "nullmailer-inject loses the first line of a message if that is no field",
    lambda text: text.partition(b"\n")[2],
)
_ONE_MORE_LINE = Habit("a line end is added to every message", lambda text: text + b"\r\n")
_CRLF_IS_MISSING = Habit(
    "what does not end in CRLF gets one, although it ends in LF: that is an empty line",
    lambda text: text + b"\r\n",
)
_DOUBLE_DOTS = Habit(
    "a dot after a lone LF is doubled, which only a server undoes that takes LF for a line's end",
    lambda text: re.sub(rb"(?<!\r)\n\.", b"\n..", text),
)
_END_IS_THERE = Habit(
    "CRLF.CRLF at the end of a message is its end already",
    lambda text: text.removesuffix(b".\r\n"),
)
_DOT_IS_END = Habit(
    "a dot at the very start is not doubled: it ends the message",
    lambda _: b"",
)

HABITS: dict[str, dict[str, Habit]] = {
    "Exim": {"mbox line": _MBOX},
    "Sendmail": {
        "mbox line": _MBOX,
        "line of 10 KB": _FOLD,
        "header of 10 KB": _FOLD_AND_CUT,
        "binary": _FOLD,
    },
    "Postfix": {
        "mbox line": _MBOX,
        "lone CR": _SPACES,
        "line of 10 KB": _FOLD_AT_998,
        "header of 10 KB": _FOLD_AT_998,
        "binary": Habit("as the two above", of=_SPACES.of, undo=_FOLD_AT_998.undo),
    },
    "dma": {"mbox line": _MBOX},
    "nullmailer": {
        "mbox line": _MBOX,
        "no header": _NO_FIRST_LINE,
        "only dots": _NO_FIRST_LINE,
    },
    "curl": {"LF": _CRLF_IS_MISSING},
    "swaks": {
        **dict.fromkeys(
            (
                *("CRLF", "LF", "CRLF and LF", "NUL", "8 bits", "line of 10 KB", "header of 10 KB"),
                *("20 MB", "no header", "UTF-8 header", "white space"),
            ),
            _ONE_MORE_LINE,
        ),
        **dict.fromkeys(("lone CR", "dots"), _END_IS_THERE),
        "only dots": _DOT_IS_END,
        "mbox line": Habit(
            "as above, and a line end is added", lambda text: _MBOX.of(text) + b"\r\n"
        ),
    },
    "Python smtplib": {
        "LF": _CRLF_IS_MISSING,
        "CRLF and LF": _DOUBLE_DOTS,
        "binary": _DOUBLE_DOTS,
    },
}

_TOO_LONG = "it sends no line of more than 998 octets"

REFUSALS: dict[str, dict[str, str]] = {
    "dma": {
        "NUL": "a line that holds NUL looks incomplete to it",
        "line of 10 KB": _TOO_LONG,
        "header of 10 KB": _TOO_LONG,
        "binary": "NUL, and lines that are too long",
    },
    "swaks": {"empty": "an empty standard input is taken for the name of a file"},
}
"""Letters that a sender refuses to send."""
