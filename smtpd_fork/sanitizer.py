"""Sanitizer: text from clients and settings, made fit for terminals, logs and error messages.

Nothing that a client sends acts on a terminal. An argument of a handler may be a password, and only
the handler knows, so none is shown.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote

__all__ = [
    "HIDDEN",
    "hidden",
    "printable",
    "shown_handler",
    "shown_handlers",
    "without_arguments",
]

HIDDEN = "***"

LONGEST_NAME = 255
"""Characters; a host name has no more (RFC 1035 2.3.4)."""

SHORTEST_SECRET = 3
"""Characters; shorter arguments are left in an error's text, which would be unreadable."""

_PATH_FOLLOWS = {"maildir"}
"""Handlers whose argument is a path."""

_DOTTED = re.compile(r"[A-Za-z_][\w.]*")

_SECRETS = (
    (re.compile(r"(://[^/\s:@]*:)[^/\s@]+@"), rf"\g<1>{HIDDEN}@"),
    (re.compile(r"(?i)\b((?:password|passwd|secret|token|api_?key)=)[^,;&\s]+"), rf"\g<1>{HIDDEN}"),
)
"""What is a secret in any text: a password in a URL, or one by its name."""

_BETWEEN = re.compile(r"[,;&?=@/:\s]+")
"""Between the parts of an argument, of which a handler may name one alone."""


def printable(text: str, limit: int | None = LONGEST_NAME) -> str:
    r"""Return *text* with what could act on a terminal as escapes: ``\x1b``, ``\n``.

    That is all control characters, those that change the direction of writing, and surrogates.

    :param limit: how many characters of *text* are kept, with ``...`` for the rest; None: all
    """
    end = "..." if limit is not None and len(text) > limit else ""
    text = text[:limit]
    if not text.isprintable():
        text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return text + end


def hidden(text: str) -> str:
    """Return *text* without the secrets that it can be seen to hold."""
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


def shown_handler(text: str) -> str:
    """Return a value of ``--handler`` without its arguments: ``module:attr:***``."""
    name, colon, rest = text.partition(":")
    if name in _PATH_FOLLOWS or not colon:
        return hidden(text)
    attr, _, arguments = rest.partition(":")
    if not _DOTTED.fullmatch(name) or not _DOTTED.fullmatch(attr):
        return f"{hidden(name)}:{HIDDEN}"  # a URL, perhaps, or a typing error
    return f"{name}:{attr}:{HIDDEN}" if arguments else text


def shown_handlers(value: Any) -> Any:
    """Return a value that was given for ``handler``, whatever it is, without arguments."""
    if isinstance(value, str):
        return shown_handler(value)
    if isinstance(value, (list, tuple)):
        return [shown_handlers(each) for each in value]
    return HIDDEN if isinstance(value, dict) else value


def without_arguments(error: str, arguments: str) -> str:
    """Return the text of an error without what it repeats of a handler's arguments."""
    parts = {arguments, *arguments.split(","), *_BETWEEN.split(arguments)}
    parts |= {unquote(part) for part in parts}
    parts |= {repr(part)[1:-1] for part in parts}
    for part in sorted(parts, key=len, reverse=True):
        if len(part) >= SHORTEST_SECRET:
            error = error.replace(part, HIDDEN)
    return hidden(error)
