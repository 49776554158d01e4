"""Frames of the milter protocol, and the numbers of its options. Sans-io.

A frame is a length (32 bits, network order), a command of one octet, and data; the length counts
command and data. Text in the data ends with NUL. The numbers are those of libmilter's ``mfdef.h``.
"""

from __future__ import annotations

import struct
from enum import IntFlag
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "LONGEST_FRAME", "VERSION", "Action", "FrameReader", "MilterGarbageError", "Options",
    "Protocol", "frame", "header_frame", "offer", "parse_options", "parse_symbols", "text_of",
    "texts",
]  # fmt: skip

LONGEST_FRAME = 64 << 20
"""Bytes of a milter's frame: more than any body that it may replace in one."""

VERSION = 6
"""What is offered: that of Sendmail 8.14 and later."""

OLDEST_VERSION = 2
"""What is accepted: that of Sendmail 8.11 to 8.13."""

_LENGTH = struct.Struct(">I")
_OPTIONS = struct.Struct(">III")

MOST_SYMBOLS = 256
"""Macros that a milter may ask for at one stage; the manuals name about 60."""


class MilterGarbageError(ValueError):
    """What a milter sent is not of the protocol; the text says what."""


class Action(IntFlag):
    """What a milter may do at the end of a message (``SMFIF_*``)."""

    ADD_HEADERS = 0x1
    CHANGE_BODY = 0x2
    ADD_RECIPIENTS = 0x4
    DELETE_RECIPIENTS = 0x8
    CHANGE_HEADERS = 0x10
    QUARANTINE = 0x20
    CHANGE_SENDER = 0x40
    ADD_RECIPIENTS_WITH_PARAMETERS = 0x80
    SET_SYMBOLS = 0x100


class Protocol(IntFlag):
    """What a milter does not want to hear, or will not answer (``SMFIP_*``)."""

    NO_CONNECT = 0x1
    NO_HELO = 0x2
    NO_MAIL = 0x4
    NO_RCPT = 0x8
    NO_BODY = 0x10
    NO_HEADERS = 0x20
    NO_END_OF_HEADER = 0x40
    SILENT_HEADER = 0x80
    NO_UNKNOWN = 0x100
    NO_DATA = 0x200
    SKIP = 0x400
    SILENT_CONNECT = 0x1000
    SILENT_HELO = 0x2000
    SILENT_MAIL = 0x4000
    SILENT_RCPT = 0x8000
    SILENT_DATA = 0x10000
    SILENT_UNKNOWN = 0x20000
    SILENT_END_OF_HEADER = 0x40000
    SILENT_BODY = 0x80000
    LEADING_SPACE = 0x100000
    """Values of header fields keep the space behind the colon, in both directions."""


ALL_ACTIONS = 0x1FF
ALL_PROTOCOL = 0x1FF7FF
"""Not ``SMFIP_RCPT_REJ``: recipients that were refused are not kept."""


class Options(NamedTuple):
    """What was negotiated.

    :ivar version: of the protocol, 2 to 6
    :ivar symbols: the macros that the milter wants, by the number of the stage
    """

    version: int
    actions: Action
    protocol: Protocol
    symbols: dict[int, list[str]]


def frame(command: bytes, data: bytes | memoryview = b"") -> bytes:
    """Return a frame."""
    return b"".join((_LENGTH.pack(len(data) + 1), command, data))


def header_frame(name: bytes, value: bytes) -> bytes:
    """Return the frame of a header field."""
    return b"%bL%b\0%b\0" % (_LENGTH.pack(len(name) + len(value) + 3), name, value)


def offer() -> bytes:
    """Return the frame that begins a conversation: all that is known here."""
    return frame(b"O", _OPTIONS.pack(VERSION, ALL_ACTIONS, ALL_PROTOCOL))


def parse_options(data: bytes) -> Options:
    """Return what a milter answers to :func:`offer`.

    :raises MilterGarbageError: it is no answer to that
    """
    if len(data) < _OPTIONS.size:
        raise MilterGarbageError("its options are too short")
    version, actions, protocol = _OPTIONS.unpack_from(data)
    if not OLDEST_VERSION <= version <= VERSION:
        raise MilterGarbageError(f"it has version {version} of the protocol, not 2 to {VERSION}")
    strange = (actions & ~ALL_ACTIONS, protocol & ~ALL_PROTOCOL)
    if any(strange):
        asked = ", ".join(f"{flags:#x}" for flags in strange if flags)
        raise MilterGarbageError(f"it asks for options that were not offered ({asked})")
    symbols = parse_symbols(data[_OPTIONS.size :])
    return Options(version, Action(actions), Protocol(protocol), symbols)


def parse_symbols(data: bytes) -> dict[int, list[str]]:
    """Return the macros that a milter wants, by stage.

    :raises MilterGarbageError: it is no list of them
    """
    wanted: dict[int, list[str]] = {}
    while data:
        if len(data) <= _LENGTH.size:
            raise MilterGarbageError("its list of macros is cut off")
        stage = _LENGTH.unpack_from(data)[0]
        text, _, data = data[_LENGTH.size :].partition(b"\0")
        names = text.decode("ascii", "replace").replace(",", " ").split()
        if len(names) > MOST_SYMBOLS:
            raise MilterGarbageError(f"it wants {len(names)} macros")
        wanted[stage] = [name.strip("{}") for name in names]
        if len(wanted) > MOST_SYMBOLS:
            raise MilterGarbageError("it wants macros for too many stages")
    return wanted


def texts(data: bytes, least: int, most: int) -> list[bytes]:
    """Return the texts of a frame, of which each ends with NUL.

    :raises MilterGarbageError: there are fewer or more of them
    """
    parts = data.split(b"\0", most + 1)
    if parts[-1] == b"":
        parts.pop()
    if not least <= len(parts) <= most:
        raise MilterGarbageError(f"a frame of it has {len(parts)} texts instead of {least}")
    return parts


def text_of(data: str) -> bytes:
    """Return a text for a frame: up to its first NUL, with one."""
    octets = data.encode("utf-8", "surrogateescape")
    return (octets.partition(b"\0")[0] if b"\0" in octets else octets) + b"\0"


class FrameReader:
    """Cuts a stream into frames; any split of it gives the same ones.

    :param longest: bytes of a frame
    """

    __slots__ = ("_held", "_longest")

    def __init__(self, longest: int = LONGEST_FRAME) -> None:
        self._held = bytearray()
        self._longest = min(longest, LONGEST_FRAME)

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield command and data of the frames that are complete with *data*.

        :raises MilterGarbageError: a frame has no command, or is too long
        """
        self._held += data
        position = 0
        try:
            while len(self._held) - position >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(self._held, position)
                if not 0 < length <= self._longest:
                    raise MilterGarbageError(f"it sends a frame of {length} bytes")
                begin = position + _LENGTH.size
                if len(self._held) - begin < length:
                    return
                position = begin + length
                yield bytes(self._held[begin : begin + 1]), bytes(self._held[begin + 1 : position])
        finally:
            del self._held[:position]

    @property
    def held(self) -> int:
        """Bytes that came and are no whole frame."""
        return len(self._held)
