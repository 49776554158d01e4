r"""Body: takes what follows DATA, and finds its end. Sans-io.

The end is CR LF . CR LF and nothing else (RFC 5321 4.1.1.4): a server that takes LF . LF for it as
well can be made to see two messages where the sender's server saw one (SMTP smuggling). The same
holds for the dots that are taken out: a dot is one only at the start of a line that CR LF ended.
"""

from __future__ import annotations

from smtpd_fork.dialogue.content import LOOK, BareNewline, Content

__all__ = ["Body"]

END = b"\r\n.\r\n"

FIRST_LOOK = 512
"""Bytes in which the end is looked for first if much has come, then in eight times as many, up to
LOOK: what follows a small message in its packet must not be searched once for each such message."""

_START = b"\r\n"
"""As if a line had just ended: so a dot at the very start is found like any other."""


class Body(Content):
    """Collects one message that DATA announced; bounded, whatever is fed.

    The parameters are those of :class:`Content`.
    """

    __slots__ = ("_held", "_skip")

    def __init__(self, size_limit: int, line_limit: int, bare: BareNewline) -> None:
        super().__init__(size_limit, line_limit, bare)
        self._held = _START
        self._skip = len(_START)  # it is no part of the message

    def feed(self, data: bytes, start: int = 0) -> int | None:
        """Take *data* from *start* on.

        :returns: where the end is behind which the message ends, or None while it has not come
        """
        if self.take_whole(data, start):
            return len(data)
        much = len(data) - start > 16 * FIRST_LOOK
        step = FIRST_LOOK if much and self._skip else LOOK
        while start < len(data):
            piece = data[start : start + step]
            end = self._look(piece)
            if end is not None:
                return start + end
            start += len(piece)
            step = min(8 * step, LOOK)
        return None

    def take_whole(self, data: bytes, start: int = 0) -> bool:
        """Take *data* if it is all of a message, without a dot to take out: the usual case.

        :returns: whether it was; else nothing was taken
        """
        if (
            not self._skip
            or len(self._held) != len(_START)  # something has come, and is held back
            or not data.endswith(END, start)
            or data.startswith(b".", start)
            or _has_dots(data, start, len(data) - 3)
        ):
            return False
        self._skip, self._held = 0, b""
        self.add_all(data[start:-3])
        return True

    def _look(self, piece: bytes) -> int | None:
        """Take *piece*; return where in it the message ends."""
        held = self._held
        data = held + piece if held else piece
        dots = _has_dots(data, 0, len(data))
        end = data.find(END) if dots else -1
        if end >= 0:
            self._held = b""
            # The one dot that is there for sure is not looked for again.
            self._unstuff(data[: end + 2], dots=_has_dots(data, 0, end))
            return end + len(END) - len(held)
        hold = _held_back(data)
        self._held = data[len(data) - hold :]
        self._unstuff(data[: len(data) - hold], dots=dots)
        return None

    def _unstuff(self, part: bytes, *, dots: bool) -> None:
        """Take a part that neither begins nor ends inside of CR LF, or of CR LF dot."""
        if not part:
            return
        if dots:
            part = part.replace(b"\r\n.", b"\r\n")
        skip, self._skip = self._skip, 0
        self.add(part[skip:] if skip else part)


def _has_dots(data: bytes, start: int, end: int) -> bool:
    """Whether a line of *data* from *start* to *end*, but the first, begins with a dot."""
    # Looking for one byte costs next to nothing: base64, of which large messages are made, has no
    # dot. And rfind, as find for two bytes is three times slower in some builds of CPython.
    return data.find(b".", start, end) >= 0 and data.rfind(b"\n.", start, end) >= 0


def _held_back(data: bytes) -> int:
    """Return how many bytes at the end of *data* may be the beginning of the end."""
    for length in (4, 3, 2, 1):
        if data.endswith(END[:length]):
            return length
    return 0
