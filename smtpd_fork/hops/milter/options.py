"""Options: the negotiation at the beginning of a connection to a milter. Sans-io."""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from smtpd_fork.hops.milter.codec import LENGTH, MilterGarbageError, frame
from smtpd_fork.hops.milter.events import EVENTS, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Options", "offer", "parse_options", "parse_symbols"]

VERSION = 6
"""The version that is offered; that of Sendmail 8.14 and later."""

OLDEST_VERSION = 2
"""The oldest version that is accepted; that of Sendmail 8.11 to 8.13."""

ALL_ACTIONS = 0x1FF
"""All ``SMFIF_*``: change header, body, sender and recipients; quarantine; list macros."""

ALL_PROTOCOL = 0x1FF7FF
"""All ``SMFIP_*`` except ``SMFIP_RCPT_REJ``: refused recipients are not stored."""

MOST_SYMBOLS = 256
"""Maximum macros that a milter may request for one stage; the manuals list about 60."""

_OPTIONS = struct.Struct(">III")


class Options(NamedTuple):
    """The negotiated options.

    :ivar version: the version of the protocol, 2 to 6
    :ivar unwanted: commands of the events that the milter does not want
    :ivar silent: commands of the events that the milter does not answer
    :ivar skips: whether the milter may skip the rest of the body
    :ivar leading_space: whether values of fields include the space after the colon
    :ivar symbols: the macros that the milter wants, by the number of the stage
    """

    version: int
    unwanted: frozenset[bytes]
    silent: frozenset[bytes]
    skips: bool
    leading_space: bool
    symbols: Mapping[int, Sequence[str]]


def offer() -> bytes:
    """Return the frame that begins a conversation and offers all options that we support."""
    return frame(b"O", _OPTIONS.pack(VERSION, ALL_ACTIONS, ALL_PROTOCOL))


def parse_options(data: bytes) -> Options:
    """Parse a milter's answer to :func:`offer`.

    :raises MilterGarbageError: it is not a valid answer
    """
    if len(data) < _OPTIONS.size:
        raise MilterGarbageError("its options are too short")
    options = _negotiated(*_OPTIONS.unpack_from(data))
    if len(data) > _OPTIONS.size:
        options = options._replace(symbols=parse_symbols(data[_OPTIONS.size :]))
    return options


@lru_cache(maxsize=16)  # a milter sends the same answer on each connection
def _negotiated(version: int, actions: int, protocol: int) -> Options:
    if not OLDEST_VERSION <= version <= VERSION:
        raise MilterGarbageError(f"it speaks version {version} of the protocol, not 2 to {VERSION}")
    strange = (actions & ~ALL_ACTIONS, protocol & ~ALL_PROTOCOL)
    if any(strange):
        asked = ", ".join(f"{flags:#x}" for flags in strange if flags)
        raise MilterGarbageError(f"it asks for options that were not offered ({asked})")
    flags = Protocol(protocol)
    return Options(
        version,
        frozenset(e.command for e in EVENTS if e.since > version or e.unwanted & flags),
        frozenset(e.command for e in EVENTS if e.silent & flags),
        Protocol.SKIP in flags,
        Protocol.LEADING_SPACE in flags,
        {},
    )


def parse_symbols(data: bytes) -> dict[int, tuple[str, ...]]:
    """Return the macros that a milter wants, by stage.

    :raises MilterGarbageError: the list is malformed, or too long
    """
    wanted: dict[int, tuple[str, ...]] = {}
    while data:
        if len(data) <= LENGTH.size:
            raise MilterGarbageError("its list of macros is cut off")
        stage = LENGTH.unpack_from(data)[0]
        text, _, data = data[LENGTH.size :].partition(b"\0")
        names = text.decode("ascii", "replace").replace(",", " ").split()
        if len(names) > MOST_SYMBOLS:
            raise MilterGarbageError(f"it wants {len(names)} macros")
        bare = (name.strip("{}") for name in names)
        wanted[stage] = tuple(name if len(name) == 1 else f"{{{name}}}" for name in bare)
        if len(wanted) > MOST_SYMBOLS:
            raise MilterGarbageError("it wants macros for too many stages")
    return wanted
