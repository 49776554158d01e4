"""Options: what is negotiated when a connection to a milter begins. Sans-io."""

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
"""What is offered: that of Sendmail 8.14 and later."""

OLDEST_VERSION = 2
"""What is accepted: that of Sendmail 8.11 to 8.13."""

ALL_ACTIONS = 0x1FF
"""Of ``SMFIF_*``: to change header, body, sender and recipients, to quarantine, to list macros."""

ALL_PROTOCOL = 0x1FF7FF
"""Not ``SMFIP_RCPT_REJ``: recipients that were refused are not kept."""

MOST_SYMBOLS = 256
"""Macros that a milter may ask for at one stage; the manuals name about 60."""

_OPTIONS = struct.Struct(">III")


class Options(NamedTuple):
    """What was negotiated.

    :ivar version: of the protocol, 2 to 6
    :ivar unwanted: commands of the events that the milter does not get
    :ivar silent: of those that it does not answer
    :ivar skips: it may have the rest of the body left out
    :ivar leading_space: values of fields keep the space behind the colon
    :ivar symbols: the macros that it wants, by the number of the stage
    """

    version: int
    unwanted: frozenset[bytes]
    silent: frozenset[bytes]
    skips: bool
    leading_space: bool
    symbols: Mapping[int, Sequence[str]]


def offer() -> bytes:
    """Return the frame that begins a conversation: all that is known here."""
    return frame(b"O", _OPTIONS.pack(VERSION, ALL_ACTIONS, ALL_PROTOCOL))


def parse_options(data: bytes) -> Options:
    """Return what a milter answers to :func:`offer`.

    :raises MilterGarbageError: it is no answer to that
    """
    if len(data) < _OPTIONS.size:
        raise MilterGarbageError("its options are too short")
    options = _negotiated(*_OPTIONS.unpack_from(data))
    if len(data) > _OPTIONS.size:
        options = options._replace(symbols=parse_symbols(data[_OPTIONS.size :]))
    return options


@lru_cache(maxsize=16)  # a milter answers the same on each connection
def _negotiated(version: int, actions: int, protocol: int) -> Options:
    if not OLDEST_VERSION <= version <= VERSION:
        raise MilterGarbageError(f"it has version {version} of the protocol, not 2 to {VERSION}")
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

    :raises MilterGarbageError: it is no list of them
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
