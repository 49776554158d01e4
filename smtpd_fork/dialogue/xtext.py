"""xtext: the encoding of any text as one word in SMTP (RFC 3461 4)."""

from __future__ import annotations

import re

__all__ = ["from_xtext", "to_xtext"]

_XTEXT = re.compile(r"(?:[!-*,-<>-~]|\+[0-9A-F]{2})*", re.IGNORECASE)
_HEX = re.compile(rb"\+([0-9A-Fa-f]{2})")
_SPECIAL = re.compile(rb"[^!-*,-<>-~]")


def to_xtext(text: str) -> str:
    """Return *text* as xtext: octets that are not printable, ``+`` and ``=`` are hexadecimal."""
    octets = text.encode("utf-8", "replace")
    return _SPECIAL.sub(lambda found: b"+%02X" % found[0][0], octets).decode("ascii")


def from_xtext(word: str) -> str:
    """Return the text of *word*, which is xtext.

    ``=`` is accepted, as Postfix sends it unencoded.

    :raises ValueError: *word* is not xtext
    """
    if not _XTEXT.fullmatch(word.replace("=", "")):
        raise ValueError("not xtext (RFC 3461)")
    octets = _HEX.sub(lambda found: bytes([int(found[1], 16)]), word.encode("ascii"))
    return octets.decode("utf-8")
