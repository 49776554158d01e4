r"""Body: collects the message after DATA, and finds its end. Sans-io.

Only CR LF . CR LF is the end (RFC 5321 4.1.1.4). A server that accepts LF . LF as well can be made
to see two messages where the sender's server saw one (SMTP smuggling). For the same reason, a
doubled dot is removed only at the start of a line after CR LF.
"""

from __future__ import annotations

from smtpd_fork.dialogue.content import PIECE, BareNewline, Content

__all__ = ["Body"]

END = b"\r\n.\r\n"

FIRST_PIECE = 512
"""Bytes in the first piece of long input that is searched for the end. Each next piece is eight
times as long, up to PIECE. Otherwise, all input after a small message would be searched once for
each small message in the input."""

_START = b"\r\n"
"""A line end before the message, so that a dot at its start is found like any other."""


class Body(Content):
    """Collects the message after DATA, with bounded memory.

    The parameters are those of :class:`Content`.
    """

    __slots__ = ("_held", "_skip")

    def __init__(self, size_limit: int, line_limit: int, bare: BareNewline) -> None:
        super().__init__(size_limit, line_limit, bare)
        self._held = _START
        self._skip = len(_START)  # bytes to remove from the content

    def feed(self, data: bytes, start: int = 0) -> int | None:
        """Add *data* from offset *start*.

        :returns: the offset after the end of the message; None if the end was not found
        """
        if self.add_whole(data, start):
            return len(data)
        much = len(data) - start > 16 * FIRST_PIECE
        step = FIRST_PIECE if much and self._skip else PIECE
        while start < len(data):
            piece = data[start : start + step]
            end = self._add_piece(piece)
            if end is not None:
                return start + end
            start += len(piece)
            step = min(8 * step, PIECE)
        return None

    def add_whole(self, data: bytes, start: int = 0) -> bool:
        """Add *data* if it is a whole message without doubled dots, which is the usual case.

        :returns: whether it was added; if not, nothing was changed
        """
        if (
            not self._skip
            or len(self._held) != len(_START)  # there is earlier input
            or not data.endswith(END, start)
            or data.startswith(b".", start)
            or _has_dots(data, start, len(data) - 3)
        ):
            return False
        self._skip, self._held = 0, b""
        self.add_all(data[start:-3])
        return True

    def _add_piece(self, piece: bytes) -> int | None:
        """Add *piece*; return the offset in it after the end of the message, or None."""
        held = self._held
        data = held + piece if held else piece
        dots = _has_dots(data, 0, len(data))
        end = data.find(END) if dots else -1
        if end >= 0:
            self._held = b""
            # Only the dots before the end are searched.
            self._unstuff(data[: end + 2], dots=_has_dots(data, 0, end))
            return end + len(END) - len(held)
        hold = _held_back(data)
        self._held = data[len(data) - hold :]
        self._unstuff(data[: len(data) - hold], dots=dots)
        return None

    def _unstuff(self, part: bytes, *, dots: bool) -> None:
        """Add a part that does not begin or end within CR LF or CR LF dot."""
        if not part:
            return
        if dots:
            part = part.replace(b"\r\n.", b"\r\n")
        skip, self._skip = self._skip, 0
        self.add(part[skip:] if skip else part)


def _has_dots(data: bytes, start: int, end: int) -> bool:
    """Return whether a line from *start* to *end*, except the first, begins with a dot."""
    # The search for one byte is very fast, and large messages are mostly base64, which has no
    # dots. rfind is used as find for two bytes is three times slower in some builds of CPython.
    return data.find(b".", start, end) >= 0 and data.rfind(b"\n.", start, end) >= 0


def _held_back(data: bytes) -> int:
    """Return how many bytes at the end of *data* may belong to the end of the message."""
    for length in (4, 3, 2, 1):
        if data.endswith(END[:length]):
            return length
    return 0
