r"""Framer: bytes in, commands and messages out. Sans-io: no socket, no clock, no reply.

The session feeds what was received, asks for the next event, acts on it, and asks again. What a
byte means depends on the command before it (after DATA it is text), so the session says what it
expects before it asks on. Any split of a stream into packets gives the same events.
"""

from __future__ import annotations

from enum import Enum

from smtpd_fork.dialogue.body import Body
from smtpd_fork.dialogue.content import BareNewline, Content

__all__ = ["Chunk", "CommandFault", "Event", "Framer"]

LINE_LIMIT = 12288 + 2
"""Bytes of the longest line of all, a response of AUTH with its CR LF (RFC 4954 4)."""

_CR = 13


class CommandFault(Enum):
    """What is wrong with a command line."""

    TOO_LONG = "the line is too long"
    BARE = "CR, LF or NUL where none may be"


class Chunk:
    """What follows BDAT (RFC 3030): so many bytes, and nothing else ends it.

    :param size: how many
    :param content: takes them; None: they are read and forgotten
    :param last: whether the message ends with it
    """

    __slots__ = ("_content", "declared", "last", "left")

    def __init__(self, size: int, content: Content | None, *, last: bool = False) -> None:
        self.left = self.declared = size
        self.last = last
        self._content = content

    @property
    def size(self) -> int:
        """Octets so far of the message that it is a part of, or of itself if it is of none."""
        return self.declared - self.left if self._content is None else self._content.size

    @property
    def held(self) -> int:
        """Octets of the message that are kept now."""
        return 0 if self._content is None else self._content.held

    def drop(self) -> None:
        """Keep nothing of the message: there is no memory left."""
        if self._content is not None:
            self._content.drop()

    def feed(self, data: bytes, start: int = 0) -> int | None:
        """Take *data* from *start* on; return where the chunk ends, or None if it does not."""
        part = data[start : start + self.left]
        self.left -= len(part)
        if self._content is not None and part:
            self._content.add(part)
        return None if self.left else start + len(part)


Event = bytes | CommandFault | Body | Chunk
"""A command line without its CR LF, or what is wrong with it, or what was expected, complete."""


class Framer:
    """Cuts a stream into events. Each byte is looked at once, however the stream is cut.

    :param bare: what becomes of bare CR and LF, and of NUL
    :ivar reading: what is being read, if it is not commands
    """

    __slots__ = ("_bare", "_buffer", "_later", "_partial", "_position", "_skipping", "reading")

    def __init__(self, bare: BareNewline) -> None:
        self._bare = bare
        self._partial: bytearray | None = None  # the beginning of a line, without its LF
        self._buffer = b""  # what follows it, from _position on
        self._position = 0
        self._later: bytearray | None = None  # what was fed before all of that was looked at
        self.reading: Body | Chunk | None = None
        self._skipping: CommandFault | None = None

    @property
    def pending(self) -> int:
        """Bytes that were fed and have not become an event."""
        return (
            len(self._buffer) - self._position + len(self._partial or b"") + len(self._later or b"")
        )

    @property
    def held(self) -> int:
        """Bytes of memory that are taken: a packet is kept until all of it has been looked at."""
        return len(self._buffer) + len(self._partial or b"") + len(self._later or b"")

    @property
    def idle(self) -> bool:
        """Whether what is fed next begins a command, and nothing was fed before it."""
        return not self.pending and self.reading is None and self._skipping is None

    def feed(self, data: bytes) -> None:
        """Take *data* after all that was fed before."""
        if self._later is not None:
            self._later += data
        elif self._position < len(self._buffer):
            self._later = bytearray(data)
        else:
            self._buffer, self._position = data, 0

    def rest(self) -> bytes:
        """Return what was fed and has not become an event."""
        return self._buffer[self._position :] + (self._later or b"")

    def expect(self, reading: Body | Chunk) -> None:
        """Read *reading* next; the event is it, when it is complete."""
        self.reading = reading

    def next(self) -> Event | None:
        """Return the next event, or None until more is fed."""
        if self.reading is not None:
            return self._read(self.reading)
        while True:
            buffer, start = self._buffer, self._position
            end = buffer.find(b"\n", start)
            if end < 0:
                self._keep_partial(buffer[start:])
                if not self._refill():
                    return None
                continue
            self._position = end + 1
            whole = self._partial is None and self._skipping is None and end > start
            if whole and buffer[end - 1] == _CR:
                # The usual case: one whole line without a fault.
                line = buffer[start : end - 1]
                if b"\r" not in line and b"\0" not in line and len(line) <= LINE_LIMIT:
                    return line
            event = self._line(buffer[start:end])
            if event is not None:
                return event

    def _refill(self) -> bool:
        """Go on with what was fed while the buffer had something in it."""
        self._buffer, self._position = b"", 0
        if self._later is None:
            return False
        self._buffer, self._later = bytes(self._later), None
        return True

    def _read(self, reading: Body | Chunk) -> Body | Chunk | None:
        while True:
            end = reading.feed(self._buffer, self._position)
            if end is not None:
                break
            if not self._refill():
                return None
        self._position = end
        if 2 * end > len(self._buffer):  # a large message's packet need not stay in memory
            self._buffer, self._position = self._buffer[end:], 0
        self.reading = None
        return reading

    def _line(self, line: bytes) -> bytes | CommandFault | None:
        """Return a line that has come without its LF, or what is wrong with it; None: nothing."""
        if self._partial is not None:
            line = bytes(self._partial) + line
            self._partial = None
        paired = line.endswith(b"\r")
        if self._skipping is not None:
            return self._skipped(paired=paired)
        if not paired and self._bare is BareNewline.REJECT:
            if len(line) > LINE_LIMIT + 1:  # so it would have been, had it come in parts
                self._skipping = CommandFault.TOO_LONG
                return None
            # What follows up to the CR LF is of the same line: it is no command of its own.
            self._skipping = CommandFault.BARE
            return CommandFault.BARE
        if paired:
            line = line[:-1]
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

    def _keep_partial(self, rest: bytes) -> None:
        """Keep the beginning of a line; of one that is too long only that it was, and a last CR."""
        if not rest:
            return
        if self._skipping is None:
            if self._partial is None:
                self._partial = bytearray()
            self._partial += rest
            if len(self._partial) <= LINE_LIMIT + 1:  # the last byte may be the CR of its end
                return
            self._skipping = CommandFault.TOO_LONG
        # The last byte may be the CR of the pair that ends it.
        self._partial = bytearray(b"\r") if rest.endswith(b"\r") else None
