r"""Content: collects the content of a message, for DATA and BDAT. Sans-io.

DATA and BDAT differ in how the end is found, and in the dots that DATA doubles. The other rules are
the same for both and are implemented here: the handling of bare CR and LF, the limit of the line
length, and the size. The result does not depend on how the input is split.

The size is that of the stored message: the octets that the handlers get, with CR LF for every line
end and without the dots that DATA doubles (RFC 1870 3). A message that grows because its line ends
are normalized has the larger size.

For speed, expensive operations are done once for each part, not for each line: the length of lines
is checked by jumps in steps of the limit from line end to line end, and a bare CR or LF is found by
comparing the text with itself after all CR were removed and one was put before each LF.
"""

from __future__ import annotations

import io
from enum import Enum
from sys import getsizeof

__all__ = ["PIECE", "BareNewline", "BodyFault", "Content", "has_bare"]

PIECE = 64 * 1024
"""Bytes that are processed at once. Intermediate results of this size are allocated from the heap
and fit in the processor's cache; larger ones would be mapped anew, page by page."""


CRS_OF_A_LINE_END = 3
"""Maximum CR before an LF that are one line end when line ends are normalized. Programs that put a
CR before each LF of a text with CR LF send CR CR LF (dma, nullmailer); Postfix removes any
number of CR. Here the number is limited, as they must be stored until the next byte is known."""


class BareNewline(Enum):
    """The handling of bare CR and LF, and of NUL."""

    REJECT = "reject"
    NORMALIZE = "normalize"
    ACCEPT = "accept"


class BodyFault(Enum):
    """The reason why a message that was read to its end is rejected."""

    TOO_LONG = "a line is too long"
    TOO_MUCH = "the message is too large"
    BARE = "bare CR, bare LF or NUL"
    NO_ROOM = "memory is low"


class Content:
    """Collects the content of one message, with bounded memory.

    :param size_limit: maximum octets of the stored message; 0 is no limit
    :param line_limit: maximum octets of a line with its line end, without a doubled dot; 0 is no
        limit
    :param bare: handling of bare CR and LF
    :ivar dropped: whether the content is no longer stored, as memory is low
    """

    __slots__ = (
        *("_bare", "_crs", "_fault", "_first", "_has_bare", "_line", "_line_limit", "_out"),
        *("_size", "_size_limit", "dropped"),
    )

    def __init__(self, size_limit: int, line_limit: int, bare: BareNewline) -> None:
        self._size_limit = size_limit
        self._line_limit = line_limit
        self._bare = bare
        self._crs = 0  # CR at the end of the input so far
        self._line = 0  # octets of the last line so far
        self._first: bytes | None = None  # the content, if it has one part
        self._out: io.BytesIO | None = None
        self._size = 0
        self._fault: BodyFault | None = None
        self._has_bare = False
        self.dropped = False

    @property
    def size(self) -> int:
        """Octets of the message so far, as stored."""
        return self._size + self._crs

    @property
    def held(self) -> int:
        """Bytes of memory in use; a growing buffer allocates some in advance."""
        if self._first is not None:
            return len(self._first)
        return getsizeof(self._out) if self._out is not None else 0

    @property
    def fault(self) -> BodyFault | None:
        """The reason to reject the message so far; the same one however the input is split.

        It is the first of a line that is too long and a message that is too large; otherwise a bare
        CR, LF or NUL; otherwise a lack of memory.
        """
        if self._fault is None and self._has_bare:
            return BodyFault.BARE
        return BodyFault.NO_ROOM if self._fault is None and self.dropped else self._fault

    def drop(self) -> None:
        """Remove the content, as memory is low. Further input is checked, but not stored."""
        self.dropped = True
        self._first = self._out = None

    def add(self, part: bytes) -> None:
        """Add the next part of the content, which may begin and end anywhere."""
        if self._fault is not None:
            self._size += len(part)
            return
        if self._bare is not BareNewline.ACCEPT:
            part = self._paired(part)
        if part:
            self._take(part)

    def add_all(self, part: bytes) -> None:
        """Add the whole content, which ends with CR LF, in one part."""
        size, limit = len(part), self._size_limit
        clean = not self._line_limit and size <= PIECE and (size <= limit or not limit)
        if clean and self._bare is not BareNewline.ACCEPT:
            clean = not _part_has_bare(part) and (
                self._bare is BareNewline.NORMALIZE or b"\0" not in part
            )
        if clean and not self.dropped:
            self._first, self._size = part, size
        else:
            self.add(part)

    def finish(self) -> None:
        """Handle the end of the content: trailing CR are bare."""
        if self._crs and self._fault is None:
            crs, self._crs = self._crs, 0
            if self._bare is BareNewline.NORMALIZE:
                self.add(b"\r\n" * crs)
            else:
                self._has_bare = True
                self._take(b"\r" * crs)

    def take(self) -> bytes:
        """Return the content, and remove it from this object."""
        content = self._first
        if content is None:
            content = self._out.getvalue() if self._out is not None else b""  # without a copy
        self._first = self._out = None
        return content

    def _paired(self, part: bytes) -> bytes:
        """Return *part* with normalized line ends, or note a bare CR, LF or NUL in it."""
        if self._crs:
            part = b"\r" * self._crs + part
            self._crs = 0
        if part.endswith(b"\r"):  # an LF may follow
            last = part[-CRS_OF_A_LINE_END:]
            self._crs = len(last) - len(last.rstrip(b"\r"))
            part = part[: -self._crs]
        if self._bare is BareNewline.REJECT:
            if not self._has_bare:
                self._has_bare = has_bare(part) or b"\0" in part
        elif has_bare(part):
            # Of three or more CR, the first call removes two and the second a third.
            part = part.replace(b"\r\r\n", b"\n").replace(b"\r\n", b"\n")
            part = part.replace(b"\r", b"\n").replace(b"\n", b"\r\n")
        return part

    def _take(self, part: bytes) -> None:
        self._check_limits(part)
        if self._fault is not None or self._has_bare:
            self._first = self._out = None  # a rejected message is not stored
        elif not self.dropped:
            self._keep(part)

    def _check_limits(self, part: bytes) -> None:
        """Check the line length and the size after *part*; the first violation is noted."""
        limit, room = self._size_limit, self._size_limit - self._size
        self._size += len(part)
        too_much = 0 < limit < self._size
        if self._line_limit and self._too_long(part[:room] if too_much else part):
            self._fault = BodyFault.TOO_LONG
        elif too_much:
            self._fault = BodyFault.TOO_MUCH

    def _too_long(self, part: bytes) -> bool:
        """Return whether a line is too long, by jumps to the last line end within the limit."""
        limit, length = self._line_limit, len(part)
        position = -self._line  # the start of the current line
        while length - position > limit:
            end = part.rfind(b"\n", max(position, 0), position + limit)
            if end < 0:
                return True
            position = end + 1
        end = part.rfind(b"\n", max(position, 0))
        self._line = length - (end + 1 if end >= 0 else position)
        return False

    def _keep(self, part: bytes) -> None:
        if self._first is None and self._out is None:
            self._first = part
            return
        if self._out is None:
            self._out = io.BytesIO()
            self._out.write(self._first or b"")
            self._first = None
        self._out.write(part)


def has_bare(text: bytes) -> bool:
    """Return whether *text* has a bare CR or LF."""
    if len(text) <= PIECE:
        return _part_has_bare(text)
    start, length = 0, len(text)
    while start < length:
        end = min(start + PIECE, length)
        end += text[end - 1 : end + 1] == b"\r\n"  # do not split a pair
        if _part_has_bare(text[start:end]):
            return True
        start = end
    return False


def _part_has_bare(part: bytes) -> bool:
    # The search for one byte is memchr(3), ten times faster than a search for two.
    return part.replace(b"\r", b"").replace(b"\n", b"\r\n") != part
