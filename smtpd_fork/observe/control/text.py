"""Text of clients, made harmless: it is read on an administrator's terminal."""

from __future__ import annotations

__all__ = ["printable"]

LONGEST = 255
"""Characters; a host's name has no more (RFC 1035 2.3.4)."""


def printable(text: str, longest: int = LONGEST) -> str:
    r"""Return *text* with all that a terminal could obey written as an escape, and its end cut off.

    Control characters (ESC, and 0x9B, which some terminals take for it), those that change the
    direction of writing, and what is no character at all become ``\x1b`` and its like.
    """
    if text.isascii() and text.isprintable() and len(text) <= longest:
        return text
    shown = [
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text[:longest]
    ]
    return "".join(shown) + ("..." if len(text) > longest else "")
