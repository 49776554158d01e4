r"""Framer: bytes in, commands and messages out. Sans-io: no socket, no clock, no reply.

The session feeds what was received, asks for the next event, acts on it, and asks again. What a
byte means depends on the command before it (after DATA it is text), so the session says what it
expects before it asks on. Any split of a stream into packets gives the same events.
"""

from __future__ import annotations

from enum import Enum

from smtpd_fork.smtp.body import BareNewline, Body

__all__ = ["Chunk", "CommandFault", "Event", "Framer"]

LINE_LIMIT = 12288 + 2
"""Bytes of the longest line of all, a response of AUTH with its CR LF (RFC 4954 4)."""

_CR = 13


class CommandFault(Enum):
    """A command line that is none."""

    TOO_LONG = "the line is too long"
    BARE = "CR, LF or NUL where none may be"


class Chunk:
    """What follows BDAT (RFC 3030): so many bytes, and nothing else ends it.

    :param size: how many
    :param keep: whether they are wanted; else they are read and forgotten
    """

    __slots__ = ("_keep", "data", "declared", "dropped", "left")

    def __init__(self, size: int, *, keep: bool) -> None:
        self.left = self.declared = size
        self._keep = keep
        self.dropped = False
        self.data = bytearray()

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self.declared - self.left

    @property
    def held(self) -> int:
        """Bytes that are kept now."""
        return len(self.data)

    def drop(self) -> None:
        """Keep nothing of it: there is no memory left."""
        self._keep = False
        self.dropped = True
        self.data = bytearray()

    def feed(self, data: bytes) -> bytes | None:
        """Take *data*; return what lies behind the end, or None while it has not come."""
        part = data[: self.left]
        if self._keep:
            self.data += part
        self.left -= len(part)
        return None if self.left else data[len(part) :]


Event = bytes | CommandFault | Body | Chunk
"""A command line without its CR LF, or what is wrong with it, or what was expected, complete."""


class Framer:
    """Cuts a stream into events.

    :param bare: what becomes of bare CR and LF, and of NUL
    """

    __slots__ = ("_bare", "_buffer", "_position", "_reading", "_skipping")

    def __init__(self, bare: BareNewline) -> None:
        self._bare = bare
        self._buffer = b""
        self._position = 0
        self._reading: Body | Chunk | None = None
        self._skipping: CommandFault | None = None

    @property
    def pending(self) -> int:
        """Bytes that were fed and have not become an event."""
        return len(self._buffer) - self._position

    @property
    def idle(self) -> bool:
        """Whether what is fed next begins a command, and nothing was fed before it."""
        return (
            self._position >= len(self._buffer) and self._reading is None and self._skipping is None
        )

    @property
    def reading(self) -> Body | Chunk | None:
        """What is being read, if it is not commands."""
        return self._reading

    def feed(self, data: bytes) -> None:
        """Take *data* after all that was fed before."""
        if self._position >= len(self._buffer):
            self._buffer, self._position = data, 0
        else:
            self._buffer, self._position = self._buffer[self._position :] + data, 0

    def clear(self) -> None:
        """Forget what was fed and has not become an event."""
        self._buffer, self._position = b"", 0
        self._reading = self._skipping = None

    def expect(self, reading: Body | Chunk) -> None:
        """Read *reading* next; the event is it, when it is complete."""
        self._reading = reading

    def next(self) -> Event | None:
        """Return the next event, or None until more is fed."""
        if self._reading is not None:
            return self._read(self._reading)
        buffer, start = self._buffer, self._position
        end = buffer.find(b"\r\n", start)
        if end >= 0 and self._skipping is None:
            line = buffer[start:end]
            # One whole line with nothing wrong in it, which is what mostly comes.
            clean = b"\n" not in line and b"\r" not in line and b"\0" not in line
            if clean and len(line) <= LINE_LIMIT:
                self._position = end + 2
                return line
        while (end := self._buffer.find(b"\n", self._position)) >= 0:
            event = self._line(end)
            if event is not None:
                return event
        self._keep_bounded()
        return None

    def _read(self, reading: Body | Chunk) -> Body | Chunk | None:
        data = self._buffer[self._position :] if self._position else self._buffer
        self._buffer, self._position = b"", 0
        rest = reading.feed(data)
        if rest is None:
            return None
        self._buffer = rest
        self._reading = None
        return reading

    def _line(self, end: int) -> bytes | CommandFault | None:
        """Return the line whose LF is at *end*, or what is wrong with it; None: nothing to say."""
        start, self._position = self._position, end + 1
        paired = end > start and self._buffer[end - 1] == _CR
        if self._skipping is not None:
            return self._skipped(paired=paired)
        if not paired and self._bare is BareNewline.REJECT:
            if end - start > LINE_LIMIT + 1:  # so it would have been, had it come in parts
                self._skipping = CommandFault.TOO_LONG
                return None
            # What follows up to the CR LF is of the same line: it is no command of its own.
            self._skipping = CommandFault.BARE
            return CommandFault.BARE
        line = self._buffer[start : end - 1 if paired else end]
        if len(line) > LINE_LIMIT:
            return CommandFault.TOO_LONG
        if self._bare is not BareNewline.ACCEPT and (b"\r" in line or b"\0" in line):
            return CommandFault.BARE
        return line

    def _skipped(self, *, paired: bool) -> CommandFault | None:
        fault = self._skipping
        if paired or self._bare is not BareNewline.REJECT:
            self._skipping = None
            return CommandFault.TOO_LONG if fault is CommandFault.TOO_LONG else None
        return CommandFault.BARE if fault is CommandFault.BARE else None

    def _keep_bounded(self) -> None:
        """Forget a line that is too long already, and remember that it was."""
        if self._skipping is None:
            if self.pending <= LINE_LIMIT + 1:  # the last byte may be the CR of its end
                return
            self._skipping = CommandFault.TOO_LONG
        # The last byte may be the CR of the pair that ends it.
        self._buffer = b"\r" if self._buffer.endswith(b"\r") and self.pending else b""
        self._position = 0
