"""Reply: makes a well-formed SMTP reply of the text that a hook returns, or raises an error.

If a client receives a malformed reply, it may take each later reply for the one to another command.
So a text with a clear meaning is converted to the form of RFC 5321 4.2, and any other text is an
error. The meaning is clear if all lines have the same code:

- a line without a code gets the code; all lines but the last get the hyphen;
- CR LF, CR and LF end a line; line ends at the end of the text are removed;
- ``?`` replaces each control character; text outside ASCII is sent as UTF-8 (RFC 6531 3.7.4.1);
- a line of more than 512 octets (RFC 5321 4.5.3.1.5) continues on the next line;
- an enhanced status code at the start of the first line is added to all lines (RFC 2034 4).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from aiosmtpd.smtp import MISSING, _Missing

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = [
    "Answer",
    "Reply",
    "answer_of",
    "ends",
    "is_plain",
    "replies_of",
    "reply_bytes",
    "sendable",
    "worst",
]  # fmt: skip

Answer: TypeAlias = str | bytes | _Missing
"""The result of most hooks: a reply, or MISSING to leave the decision to others."""

LONGEST_TEXT = 512 - len("250 \r\n")
"""Octets of a line's text (RFC 5321 4.5.3.1.5)."""

MOST_LINES = 100
"""Lines of a reply; smtplib and other clients read all lines before they continue."""

LONGEST_REPLY = MOST_LINES * LONGEST_TEXT
"""Characters of a hook's result; the rest is cut off."""

_PLAIN = re.compile(rf"[245][0-9][0-9](?: [ -~]{{0,{LONGEST_TEXT}}})?")

is_plain = _PLAIN.fullmatch
"""Match a reply of one line that can be sent unchanged, as most hooks return."""

_LINE = re.compile(r"[2-5][0-9][0-9](?:[ -][ -~]*)?")
"""A line of a reply. A challenge of AUTH has no maximum length (RFC 4954 4)."""

_CODED = re.compile(r"([2-5][0-9][0-9])(?:([ -])(.*))?", re.DOTALL)
_LINE_END = re.compile(r"\r\n|\r|\n")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_ENHANCED = re.compile(r"[245]\.[0-9]{1,3}\.[0-9]{1,3}(?= |$)")


class Reply(str):
    r"""A well-formed reply of one or more lines, without the last CR LF.

    ``Reply("550 5.7.1 No\nSee the list")`` is ``"550-5.7.1 No\r\n550 5.7.1 See the list"``. A hook
    may return a Reply, or a ``str`` that is converted in the same way.

    :param text: the code and the text after it
    :raises ValueError: *text* has no code (RFC 5321 4.2), or lines with different codes
    """

    __slots__ = ()

    def __new__(cls, text: str | bytes) -> Self:
        """Read *text*."""
        if isinstance(text, bytes):
            text = text.decode("utf-8", "replace")
        lines = _LINE_END.split(text[:LONGEST_REPLY])
        while len(lines) > 1 and not lines[-1]:
            lines.pop()
        return super().__new__(cls, _put_together(lines))

    @property
    def code(self) -> int:
        """The three digits (RFC 5321 4.2.1)."""
        return int(self[:3])

    @property
    def lines(self) -> list[str]:
        """The text of each line, without the code."""
        return [line[4:] for line in self.split("\r\n")]


def answer_of(hook: str, status: Any) -> Any:
    """Return the result of a hook in the form in which it is sent: MISSING or a well-formed reply.

    :raises TypeError: *status* is neither, or is a 3yz reply
    """
    if status is MISSING or (isinstance(status, str) and is_plain(status)):
        return status
    try:
        if isinstance(status, (str, bytes)) and (reply := Reply(status))[0] != "3":
            return reply
    except ValueError:
        pass
    raise TypeError(f"the hook {hook} must return a reply such as '250 OK', not {status!r:.200}")


def replies_of(text: str) -> list[Reply]:
    """Return the replies in *text*, which an LMTP handler may have joined.

    :raises ValueError: *text* does not begin with a code
    """
    replies: list[list[str]] = []
    over = True
    for line in _LINE_END.split(text.rstrip("\r\n")):
        coded = _CODED.fullmatch(line)
        if coded is None and not replies:
            raise ValueError(f"not a reply: {line!r:.200}")
        if coded is not None and over:
            replies.append([])
        if coded is not None:
            over = coded[2] != "-"
        replies[-1].append(line)
    return [Reply("\n".join(lines)) for lines in replies]


def worst(replies: Sequence[str]) -> str:
    """Return the first 4yz, so that the client sends the message again; otherwise the first 5yz.

    Without any of them, return the first reply.
    """
    return next((reply for digit in "45" for reply in replies if reply[0] == digit), replies[0])


def sendable(status: str | bytes) -> str:
    """Return the text that a subclass pushes, as a reply or as the first lines of a reply.

    :raises ValueError: *status* is not part of a reply
    """
    text = status.decode("utf-8", "replace") if isinstance(status, bytes) else status
    if _LINE.fullmatch(text):
        return text
    reply = Reply(text)
    coded = _CODED.fullmatch(_LINE_END.split(text.rstrip("\r\n"))[-1])
    if coded is None or coded[2] != "-":
        return reply
    before, end, last = reply.rpartition("\r\n")
    return f"{before}{end}{last[:3]}-{last[4:]}"  # more lines follow


def reply_bytes(status: str) -> bytes:
    """Return the bytes of a reply."""
    return status.encode("utf-8", "replace") + b"\r\n"


def ends(reply: bytes) -> bool:
    """Return whether the last line of *reply* ends a reply; a subclass may push its first lines."""
    return reply[reply.rfind(b"\n", 0, -1) + 4 :][:1] != b"-"


def _put_together(lines: Sequence[str]) -> str:
    first = _CODED.fullmatch(lines[0])
    if first is None:
        raise ValueError(f"not a reply: {lines[0]!r:.200}")
    code = first[1]
    enhanced = _ENHANCED.match(first[3] or "")
    texts: list[str] = []
    for line in lines:
        coded = _CODED.fullmatch(line)
        if coded is not None and coded[1] != code:
            raise ValueError(f"lines of {code} and of {coded[1]} are not one reply")
        text = line if coded is None else coded[3] or ""
        if enhanced is not None and _ENHANCED.match(text) is None:
            text = f"{enhanced[0]} {text}"
        # A lone surrogate cannot be encoded as UTF-8.
        clean = _CONTROL.sub("?", text).encode("utf-8", "replace").decode()
        texts += _folded(clean, enhanced[0] + " " if enhanced is not None else "")
        if len(texts) >= MOST_LINES:
            break
    *before, last = texts[:MOST_LINES]
    return "\r\n".join([*(f"{code}-{text}" for text in before), f"{code} {last}" if last else code])


def _folded(text: str, prefix: str) -> Iterator[str]:
    """Yield *text* in pieces that fit in a line, broken at spaces where possible."""
    while len(octets := text.encode()) > LONGEST_TEXT:
        piece = octets[:LONGEST_TEXT].decode("utf-8", "ignore")
        space = piece.rfind(" ", len(prefix) + 1)
        if space > 0:
            piece = piece[:space]
        yield piece
        text = prefix + text[len(piece) :].lstrip(" ")
    yield text
