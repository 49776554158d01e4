r"""Body: takes what follows DATA, and finds its end. Sans-io.

The end is CR LF . CR LF and nothing else (RFC 5321 4.1.1.4): whoever takes LF . LF for it as well
can be made to see two messages where the sender's server saw one (SMTP smuggling).

What costs here is paid once a chunk, never once a line. Lines are not looked at one by one: their
length is checked by hopping from line end to line end in steps of the limit, and bare CR or LF
shows when the text is not what it becomes by taking all CR out and putting one before each LF.
"""

from __future__ import annotations

import io
import re
from enum import Enum

__all__ = ["BareNewline", "Body", "BodyFault", "has_bare", "normalized"]

END = b"\r\n.\r\n"

LOOK = 64 * 1024
"""Bytes that are looked at in one go: what is made of them then comes from the heap and stays in
the processor's cache, where larger pieces would each be mapped anew, page by page."""

_BREAK = re.compile(rb"\r\n|\r|\n")


class BareNewline(Enum):
    """What becomes of CR and LF that are not a pair, and of NUL."""

    REJECT = "reject"
    NORMALIZE = "normalize"
    ACCEPT = "accept"


class BodyFault(Enum):
    """Why a message that was read to its end is not accepted."""

    TOO_LONG = "a line is too long"
    TOO_MUCH = "the message is too large"
    BARE = "CR, LF or NUL where none may be"
    NO_ROOM = "there is no memory left for it"


class Body:
    """Collects one message; bounded, whatever is fed.

    :param size_limit: bytes of the message, as it is sent; 0 is no limit
    :param line_limit: bytes of a line with its CR LF and a transparent dot; 0 is no limit
    :param bare: what becomes of bare CR and LF
    :ivar size: bytes so far, as they were sent
    """

    __slots__ = (
        "_bare",
        "_dropped",
        "_has_bare",
        "_has_long",
        "_held",
        "_line",
        "_line_limit",
        "_out",
        "_size_limit",
        "_skip",
        "_whole",
        "size",
    )

    def __init__(self, size_limit: int, line_limit: int, bare: BareNewline) -> None:
        self._size_limit = size_limit
        self._line_limit = line_limit
        self._bare = bare
        # As if a line had just ended: so a dot at the very start is found like any other.
        self._held = b"\r\n"
        self._skip = 2
        self._line = 0
        self._whole: bytes | None = None  # a message that came in one part is that part
        self._out: io.BytesIO | None = None
        self.size = 0
        self._has_long = False
        self._has_bare = False
        self._dropped = False

    @property
    def held(self) -> int:
        """Bytes that are kept now."""
        if self._whole is not None:
            return len(self._whole)
        return self._out.tell() if self._out is not None else 0

    def drop(self) -> None:
        """Keep nothing of it: there is no memory left. What comes is read and forgotten."""
        self._dropped = True
        self._forget()

    def _forget(self) -> None:
        self._whole = self._out = None

    @property
    def fault(self) -> BodyFault | None:
        """What is wrong with what came so far; of several faults the same one, however it came."""
        if self._has_long:
            return BodyFault.TOO_LONG
        if 0 < self._size_limit < self.size:
            return BodyFault.TOO_MUCH
        if self._has_bare:
            return BodyFault.BARE
        return BodyFault.NO_ROOM if self._dropped else None

    def feed(self, data: bytes) -> bytes | None:
        """Take *data*; return what lies behind the end, or None while it has not come."""
        if not self.size and self.take_whole(data):
            return b""
        if self._held:
            data = self._held + data
        # rfind, as find for two bytes is three times slower in some builds of CPython
        dots = data.rfind(b"\n.") >= 0
        end = data.find(END) if dots else -1
        if end >= 0:
            self._held = b""
            # The one dot that is there for sure is not looked for again.
            self._take(data[: end + 2], dots=data.rfind(b"\n.", 0, end) >= 0)
            return data[end + 5 :]
        hold = _held_back(data)
        self._held = data[len(data) - hold :]
        self._take(data[: len(data) - hold], dots=dots)
        return None

    def _take(self, part: bytes, *, dots: bool) -> None:
        """Take a part that neither begins nor ends inside of CR LF, or of CR LF dot."""
        if not part:
            return
        skip, self._skip = self._skip, 0
        self.size += len(part) - skip
        if self._bare is BareNewline.REJECT and not self._has_bare:
            self._has_bare = has_bare(part)
        self._has_long = self._has_long or (self._line_limit > 0 and self._too_long(part))
        if self.fault is not None:
            self._forget()  # what is not accepted is not kept
            return
        if dots:
            part = part.replace(b"\r\n.", b"\r\n")
        if self._out is None:
            self._out = io.BytesIO()
        self._out.write(part[skip:] if skip else part)

    def take_whole(self, data: bytes) -> bool:
        """Take all of a message with nothing special about it, which is what mostly comes.

        :returns: whether *data* was one, and all that there is; else nothing was taken
        """
        if (
            self.size
            or not data.endswith(END)
            or data.startswith(b".")
            or data.rfind(b"\n.", 0, -3) >= 0
            or self._has_long
            or self._dropped
        ):
            return False
        part = data[:-3]
        if (
            0 < self._size_limit < len(part)
            or (self._bare is BareNewline.REJECT and has_bare(part))
            or (0 < self._line_limit < len(part) and self._too_long(part))
        ):
            return False
        self._whole, self._held = part, b""
        self.size = len(part)
        return True

    def _too_long(self, part: bytes) -> bool:
        """Whether a line is over the limit; hops, each time to the last line end in reach."""
        limit, length = self._line_limit, len(part)
        # Where no LF is bare, LF alone is sooner found.
        mark = b"\n" if self._bare is BareNewline.REJECT and not self._has_bare else b"\r\n"
        position = -self._line  # where the current line began
        while length - position > limit:
            end = part.rfind(mark, max(position, 0), position + limit)
            if end < 0:
                return True
            position = end + len(mark)
        end = part.rfind(mark, max(position, 0))
        self._line = length - (end + len(mark) if end >= 0 else position)
        return False

    def content(self) -> bytes:
        """Return the message, dots unstuffed. For once: it is no longer kept."""
        if self._whole is not None:
            content = self._whole
        else:
            content = self._out.getvalue() if self._out is not None else b""  # shares its memory
        self._forget()
        if self._bare is BareNewline.NORMALIZE:
            content = normalized(content)
        return content


def normalized(content: bytes) -> bytes:
    """Return *content* with CR LF for every line's end, and without NUL."""
    if not has_bare(content):
        return content
    return _BREAK.sub(b"\r\n", content.replace(b"\0", b""))


def _held_back(data: bytes) -> int:
    """Return how many bytes at the end of *data* may be the beginning of the end."""
    for length in (4, 3, 2, 1):
        if data.endswith(END[:length]):
            return length
    return 0


def has_bare(text: bytes) -> bool:
    """Whether *text* has CR or LF that is not of a pair, or NUL."""
    if len(text) <= LOOK:
        return _part_has_bare(text)
    start, length = 0, len(text)
    while start < length:
        end = min(start + LOOK, length)
        end += text[end - 1 : end + 1] == b"\r\n"  # a pair stays one
        if _part_has_bare(text[start:end]):
            return True
        start = end
    return False


def _part_has_bare(part: bytes) -> bool:
    # Searching and replacing one byte is memchr(3), ten times faster than anything with two.
    return part.replace(b"\r", b"").replace(b"\n", b"\r\n") != part or b"\0" in part
