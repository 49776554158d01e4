r"""Content: collects the content of one message, for DATA and for BDAT alike. Sans-io.

DATA and BDAT differ in how the end is found, and in the dots that DATA doubles. All else is decided
here, once for both: what becomes of a CR or LF that is not part of a CR LF pair, which line is too
long, and what counts towards the size. The result does not depend on how the content is cut.

What counts is what is stored: the octets that the handlers get, with CR LF for every line end and
without the dots that DATA doubles (RFC 1870 3). A message that grows because its line ends are
normalized is charged for what it has become.

What costs here is paid once a part, never once a line. Lines are not looked at one by one: their
length is checked by hopping from line end to line end in steps of the limit, and a bare CR or LF
shows when the text is not what it becomes by taking all CR out and putting one before each LF.
"""

from __future__ import annotations

import io
from enum import Enum
from sys import getsizeof

__all__ = ["LOOK", "BareNewline", "BodyFault", "Content", "has_bare"]

LOOK = 64 * 1024
"""Bytes that are looked at in one go: what is made of them then comes from the heap and stays in
the processor's cache, where larger pieces would each be mapped anew, page by page."""


CRS_OF_A_LINE_END = 3
"""CR before an LF that make one line end with it when line ends are normalized. Programs that are
given CR LF and put a CR before each LF send CR CR LF (dma, nullmailer); Postfix takes all of them.
There is a limit because they are held back until it is known what follows."""


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


class Content:
    """Collects the content of one message; bounded, whatever is added.

    :param size_limit: octets of the message as it is stored; 0 is no limit
    :param line_limit: octets of a line with its line end, without a doubled dot; 0 is no limit
    :param bare: what becomes of bare CR and LF
    """

    __slots__ = (
        *("_bare", "_crs", "_fault", "_first", "_has_bare", "_line", "_line_limit", "_out"),
        *("_size", "_size_limit", "dropped"),
    )

    def __init__(self, size_limit: int, line_limit: int, bare: BareNewline) -> None:
        self._size_limit = size_limit
        self._line_limit = line_limit
        self._bare = bare
        self._crs = 0  # that have come, while what follows them has not
        self._line = 0  # octets so far of the line that has no end yet
        self._first: bytes | None = None  # content that came in one part is that part
        self._out: io.BytesIO | None = None
        self._size = 0
        self._fault: BodyFault | None = None
        self._has_bare = False
        self.dropped = False

    @property
    def size(self) -> int:
        """Octets so far, as they are stored or would be."""
        return self._size + self._crs

    @property
    def held(self) -> int:
        """Bytes of memory that are taken now; a buffer that grows takes some in advance."""
        if self._first is not None:
            return len(self._first)
        return getsizeof(self._out) if self._out is not None else 0

    @property
    def fault(self) -> BodyFault | None:
        """What is wrong with what came so far; of several faults the same one, however it came.

        That is the first that comes of a line that is too long and a message that is too large,
        before a bare CR, LF or NUL anywhere, before a lack of memory.
        """
        if self._fault is None and self._has_bare:
            return BodyFault.BARE
        return BodyFault.NO_ROOM if self._fault is None and self.dropped else self._fault

    def drop(self) -> None:
        """Keep nothing of it: there is no memory left. What comes is judged and forgotten."""
        self.dropped = True
        self._first = self._out = None

    def add(self, part: bytes) -> None:
        """Take the next part, cut anywhere."""
        if self._fault is not None:
            self._size += len(part)
            return
        if self._bare is not BareNewline.ACCEPT:
            part = self._paired(part)
        if part:
            self._take(part)

    def add_all(self, part: bytes) -> None:
        """Take all of a message, which ends with CR LF, in one part."""
        size, limit = len(part), self._size_limit
        clean = not self._line_limit and size <= LOOK and (size <= limit or not limit)
        if clean and self._bare is not BareNewline.ACCEPT:
            clean = not _part_has_bare(part) and (
                self._bare is BareNewline.NORMALIZE or b"\0" not in part
            )
        if clean and not self.dropped:
            self._first, self._size = part, size
        else:
            self.add(part)

    def finish(self) -> None:
        """Take the end: CR that came last are bare ones."""
        if self._crs and self._fault is None:
            crs, self._crs = self._crs, 0
            if self._bare is BareNewline.NORMALIZE:
                self.add(b"\r\n" * crs)
            else:
                self._has_bare = True
                self._take(b"\r" * crs)

    def take(self) -> bytes:
        """Return the content. For once: it is no longer kept."""
        content = self._first
        if content is None:
            content = self._out.getvalue() if self._out is not None else b""  # shares its memory
        self._first = self._out = None
        return content

    def _paired(self, part: bytes) -> bytes:
        """Return *part* as it is to be stored, and note a bare CR, LF or NUL in it."""
        if self._crs:
            part = b"\r" * self._crs + part
            self._crs = 0
        if part.endswith(b"\r"):  # it may be half of a pair
            last = part[-CRS_OF_A_LINE_END:]
            self._crs = len(last) - len(last.rstrip(b"\r"))
            part = part[: -self._crs]
        if self._bare is BareNewline.REJECT:
            if not self._has_bare:
                self._has_bare = has_bare(part) or b"\0" in part
        elif has_bare(part):
            # The first takes two CR out of any run of three or more, the second a third one.
            part = part.replace(b"\r\r\n", b"\n").replace(b"\r\n", b"\n")
            part = part.replace(b"\r", b"\n").replace(b"\n", b"\r\n")
        return part

    def _take(self, part: bytes) -> None:
        self._judge(part)
        if self._fault is not None or self._has_bare:
            self._first = self._out = None  # what is not accepted is not kept
        elif not self.dropped:
            self._keep(part)

    def _judge(self, part: bytes) -> None:
        """See whether a line or the whole becomes too long with *part*; the first one counts."""
        limit, room = self._size_limit, self._size_limit - self._size
        self._size += len(part)
        too_much = 0 < limit < self._size
        if self._line_limit and self._too_long(part[:room] if too_much else part):
            self._fault = BodyFault.TOO_LONG
        elif too_much:
            self._fault = BodyFault.TOO_MUCH

    def _too_long(self, part: bytes) -> bool:
        """Whether a line is over the limit; hops, each time to the last line end in reach."""
        limit, length = self._line_limit, len(part)
        position = -self._line  # where the current line began
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
    """Whether *text* has CR or LF that is not of a pair."""
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
    return part.replace(b"\r", b"").replace(b"\n", b"\r\n") != part
