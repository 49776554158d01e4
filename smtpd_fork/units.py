"""Parse and format sizes, durations, counts and octal modes, as options and files have them.

Each kind is one regular expression. Libraries for this purpose (humanize, pytimeparse and others)
accept many more forms than the documentation states.
"""

from __future__ import annotations

import re

__all__ = [
    "counted",
    "format_size",
    "parse_boolean",
    "parse_count",
    "parse_duration",
    "parse_mode",
    "parse_size",
]

_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_SIZE = re.compile(r"(\d+)\s*([KMG]?)(?:i?B)?", re.ASCII | re.IGNORECASE)
_SIZE_FACTORS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|)", re.ASCII | re.IGNORECASE)
_DURATION_FACTORS = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}
_MODE = re.compile(r"0?o?([0-7]{3})", re.IGNORECASE)

_LONGEST_NUMBER = 20
"""Characters of a number; a longer text is an error and is not parsed."""


def parse_boolean(value: object) -> bool:
    """Return True for ``true``, ``yes`` or ``1``, False for ``false``, ``no`` or ``0``.

    :param value: text, or a boolean, which is returned
    :raises ValueError: *value* is none of these
    """
    if isinstance(value, bool):
        return value
    if not isinstance(value, str) or value.lower() not in _BOOLEANS:
        raise ValueError("expected true or false")
    return _BOOLEANS[value.lower()]


def parse_size(text: str) -> int:
    """Return a size in bytes: ``25M`` is 26214400, ``1000`` is 1000.

    :raises ValueError: *text* is not a size
    """
    match = _match(_SIZE, text, "a size; write bytes, or a number with K, M or G, as in 25M")
    return int(match[1]) * _SIZE_FACTORS[match[2].upper()]


def format_size(size: int) -> str:
    """Return *size* with the largest unit that fits: 26214400 is ``25M``."""
    for unit in "GMK":
        if size and size % _SIZE_FACTORS[unit] == 0:
            return f"{size // _SIZE_FACTORS[unit]}{unit}"
    return str(size)


def parse_count(text: str, *, at_least: int = 1, at_most: int = 9_999_999) -> int:
    """Return the whole number in *text*.

    :raises ValueError: *text* is not a whole number, or is out of the range
    """
    if not text.isascii() or not text.isdigit() or len(text) > _LONGEST_NUMBER:
        raise ValueError("not a whole number")
    number = int(text)
    if not at_least <= number <= at_most:
        raise ValueError(f"must be {at_least} to {at_most}, not {number}")
    return number


def parse_duration(text: str) -> float:
    """Return a duration in seconds: ``30``, ``30s``, ``500ms``, ``5m``, ``1h``.

    :raises ValueError: *text* is not a duration
    """
    match = _match(_DURATION, text, "a duration; write seconds, or a number with ms, s, m or h")
    return float(match[1]) * _DURATION_FACTORS[match[2].lower()]


def parse_mode(text: str) -> int:
    """Return a file mode, written in octal: ``0660`` or ``660``.

    :raises ValueError: *text* is not a mode
    """
    return int(_match(_MODE, text, "a file mode; write three octal digits, as in 0660")[1], 8)


def _match(pattern: re.Pattern[str], text: str, wanted: str) -> re.Match[str]:
    match = pattern.fullmatch(text.strip()) if len(text) <= _LONGEST_NUMBER else None
    if match is None:
        raise ValueError(f"not {wanted}")
    return match


def counted(number: int, noun: str) -> str:
    """Return *number* and *noun*: ``1 session``, ``2 sessions``."""
    return f"{number} {noun}" + ("" if number == 1 else "s")
