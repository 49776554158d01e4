r"""Framer: splits input into commands and messages. Sans-io: no sockets, no clock, no replies.

The session adds input, requests the next event, processes it, and requests the next one. The
meaning of a byte depends on the command before it (after DATA it is text), so the session sets what
it expects before the next request. The events do not depend on how the input is split.
"""

from __future__ import annotations

from enum import Enum

from smtpd_fork.dialogue.body import Body
from smtpd_fork.dialogue.content import BareNewline, Content

__all__ = ["Chunk", "CommandFault", "Event", "Framer"]

LINE_LIMIT = 12288 + 2
"""Maximum bytes of any line: a response of AUTH with its CR LF (RFC 4954 4)."""

_CR = 13


class CommandFault(Enum):
    """The reason why a command line is invalid."""

    TOO_LONG = "the line is too long"
    BARE = "bare CR, bare LF or NUL"


class Chunk:
    """The octets after BDAT (RFC 3030); only their number determines the end.

    :param size: the number of octets
    :param content: the object that collects them; None: they are dropped
    :param last: whether the message ends with this chunk
    """

    __slots__ = ("_content", "declared", "last", "left")

    def __init__(self, size: int, content: Content | None, *, last: bool = False) -> None:
        self.left = self.declared = size
        self.last = last
        self._content = content

    @property
    def size(self) -> int:
        """Octets of the message so far, or of the chunk if it belongs to no message."""
        return self.declared - self.left if self._content is None else self._content.size

    @property
    def held(self) -> int:
        """Bytes of memory of the message."""
        return 0 if self._content is None else self._content.held

    def drop(self) -> None:
        """Remove the content of the message, as memory is low."""
        if self._content is not None:
            self._content.drop()

    def feed(self, data: bytes, start: int = 0) -> int | None:
        """Add *data* from offset *start*; return the offset of the chunk's end, or None."""
        part = data[start : start + self.left]
        self.left -= len(part)
        if self._content is not None and part:
            self._content.add(part)
        return None if self.left else start + len(part)


Event = bytes | CommandFault | Body | Chunk
"""A command line without its CR LF, the error of one, or a complete message or chunk."""


class Framer:
    """Splits a stream into events. Each byte is examined once, however the stream is split.

    :param bare: handling of bare CR and LF, and of NUL
    :ivar reading: the message or chunk that is being read; None while commands are read
    """

    __slots__ = ("_bare", "_buffer", "_later", "_partial", "_position", "_skipping", "reading")

    def __init__(self, bare: BareNewline) -> None:
        self._bare = bare
        self._partial: bytearray | None = None  # the beginning of a line, without its LF
        self._buffer = b""  # the input after it, from _position
        self._position = 0
        self._later: bytearray | None = None  # input that was added while _buffer was in use
        self.reading: Body | Chunk | None = None
        self._skipping: CommandFault | None = None

    @property
    def pending(self) -> int:
        """Bytes of input that do not belong to an event yet."""
        return (
            len(self._buffer) - self._position + len(self._partial or b"") + len(self._later or b"")
        )

    @property
    def held(self) -> int:
        """Bytes of memory; a packet is stored until all of it has been examined."""
        return len(self._buffer) + len(self._partial or b"") + len(self._later or b"")

    @property
    def idle(self) -> bool:
        """Whether the next input begins a command, and there is no input before it."""
        return not self.pending and self.reading is None and self._skipping is None

    def feed(self, data: bytes) -> None:
        """Add *data* to the input."""
        if self._later is not None:
            self._later += data
        elif self._position < len(self._buffer):
            self._later = bytearray(data)
        else:
            self._buffer, self._position = data, 0

    def rest(self) -> bytes:
        """Return the input that does not belong to an event yet."""
        return self._buffer[self._position :] + (self._later or b"")

    def expect(self, reading: Body | Chunk) -> None:
        """Read *reading* next; when it is complete, it is the next event."""
        self.reading = reading

    def next(self) -> Event | None:
        """Return the next event, or None if more input is needed."""
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
                # The usual case: one complete and valid line.
                line = buffer[start : end - 1]
                if b"\r" not in line and b"\0" not in line and len(line) <= LINE_LIMIT:
                    return line
            event = self._line(buffer[start:end])
            if event is not None:
                return event

    def _refill(self) -> bool:
        """Continue with the input that was added meanwhile; return whether there is any."""
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
        if 2 * end > len(self._buffer):  # release the memory of a large message's packet
            self._buffer, self._position = self._buffer[end:], 0
        self.reading = None
        return reading

    def _line(self, line: bytes) -> bytes | CommandFault | None:
        """Return a line without its LF, or its error; None while a bad line is skipped."""
        if self._partial is not None:
            line = bytes(self._partial) + line
            self._partial = None
        paired = line.endswith(b"\r")
        if self._skipping is not None:
            return self._skipped(paired=paired)
        if not paired and self._bare is BareNewline.REJECT:
            if len(line) > LINE_LIMIT + 1:  # the same result as if it was received in parts
                self._skipping = CommandFault.TOO_LONG
                return None
            # The input up to the CR LF belongs to the same line: it is not a command.
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
        """Store the beginning of a line; if it is too long, only its error and a last CR."""
        if not rest:
            return
        if self._skipping is None:
            if self._partial is None:
                self._partial = bytearray()
            self._partial += rest
            if len(self._partial) <= LINE_LIMIT + 1:  # the last byte may be the CR of the line end
                return
            self._skipping = CommandFault.TOO_LONG
        # The last byte may be the CR of the line end.
        self._partial = bytearray(b"\r") if rest.endswith(b"\r") else None
