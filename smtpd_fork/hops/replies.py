"""HopReply, and ReplyReader, which splits a stream into replies of limited size."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["GarbageError", "HopReply", "ReplyReader"]

LONGEST_LINE = 2048
"""Maximum octets of a line with its end: Postfix's limit, four times that of RFC 5321 4.5.3.1.5."""

MOST_LINES = 128
"""Maximum lines of a reply; a reply to EHLO has about twenty."""

LONGEST_REPLY = 32 * 1024
"""Maximum octets of a reply with all its lines."""

_LINE = re.compile(rb"([2-5][0-9][0-9])(?:([ -])([^\r\n]*))?\r?\n")


class GarbageError(ValueError):
    """The data is not an SMTP reply, or a reply exceeds a limit."""


class HopReply(NamedTuple):
    """A reply of the next hop.

    :ivar code: 200 to 599
    :ivar lines: the text of each line, without the code
    """

    code: int
    lines: tuple[str, ...]

    @property
    def positive(self) -> bool:
        """Whether it is 2yz."""
        return self.code // 100 == 2  # noqa: PLR2004 - RFC 5321 4.2.1

    @property
    def text(self) -> str:
        """The texts of all lines, joined by spaces."""
        return " ".join(line for line in self.lines if line)

    def __str__(self) -> str:
        return f"{self.code} {self.text}".rstrip()


class ReplyReader:
    """Splits a stream into replies, independently of how it is received."""

    __slots__ = ("_code", "_lines", "_octets", "_rest")

    def __init__(self) -> None:
        self._rest = b""
        self._code = b""
        self._lines: list[str] = []
        self._octets = 0

    @property
    def pending(self) -> bool:
        """Whether an incomplete reply was received."""
        return bool(self._rest or self._lines)

    def feed(self, data: bytes) -> Iterator[HopReply]:
        """Yield the replies that are complete with *data*.

        :raises GarbageError: the data is not a reply, or a reply exceeds a limit
        """
        if self._rest:
            data = self._rest + data
        position = 0
        while match := _LINE.match(data, position):
            length = match.end() - position
            position = match.end()
            reply = self._line(match, length)
            if reply is not None:
                yield reply
        self._rest = data[position:]
        if b"\n" in self._rest:
            line = self._rest[:80].partition(b"\n")[0].rstrip()
            raise GarbageError(f"not an SMTP reply: {ascii(line)[1:]}")
        if len(self._rest) >= LONGEST_LINE:
            raise GarbageError(f"a reply has a line of more than {LONGEST_LINE} octets")

    def _line(self, match: re.Match[bytes], length: int) -> HopReply | None:
        """Handle a line; return the reply that ends with it, or None."""
        code, more, text = match.groups()
        words = text.decode("utf-8", "replace") if text else ""
        if more != b"-" and not self._lines and length <= LONGEST_LINE:
            return HopReply(int(code), (words,))
        if length > LONGEST_LINE:
            raise GarbageError(f"a reply has a line of more than {LONGEST_LINE} octets")
        if self._lines and code != self._code:
            raise GarbageError(f"not an SMTP reply: lines of {self._code!r} and {code!r}")
        self._lines.append(words)
        self._octets += length
        if len(self._lines) > MOST_LINES or self._octets > LONGEST_REPLY:
            raise GarbageError(
                f"a reply has more than {MOST_LINES} lines or {LONGEST_REPLY} octets"
            )
        if more == b"-":
            self._code = code
            return None
        reply = HopReply(int(code), tuple(self._lines))
        self._lines = []
        self._octets = 0
        return reply
