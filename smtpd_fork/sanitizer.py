"""Sanitizer: makes text from clients and settings safe for terminals, logs and error messages.

Control characters of clients are escaped. Arguments of a user's handler are not shown at all, as
only the handler knows which of them are passwords.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import Any
from urllib.parse import unquote

__all__ = [
    "BUILT_IN_NAMES", "HIDDEN", "KEY_FOLLOWS", "hidden", "printable", "shown_handler",
    "shown_handlers", "shown_value", "without_arguments",
]  # fmt: skip

HIDDEN = "***"

LONGEST_NAME = 255
"""Characters; a host name has no more (RFC 1035 2.3.4)."""

SHORTEST_SECRET = 3
"""Characters. Shorter arguments are not hidden in the text of an error, which would be unreadable
without all words that contain them."""

BUILT_IN_NAMES = frozenset({
    "accept", "auth", "debug", "discard", "lmtp", "maildir", "mbox", "milter", "nats", "pipe",
    "policy", "redis", "relay", "rspamd", "s3", "webhook",
})  # fmt: skip
"""Handlers whose keys are known, so that only the values of secret keys are hidden."""

_WITHOUT_ARGUMENT = {"debug", "discard"}
"""Built-in handlers without keys. An argument of theirs is a mistake, and may be a secret."""

KEY_FOLLOWS = re.compile(r",(?=[a-z][a-z0-9_.-]*=)")
"""A comma before a key in ``NAME:ARGUMENT,KEY=VALUE``; others belong to an argument or a value."""

_SECRET_KEY = re.compile(r"(?i)[a-z_.-]*(?:password|passwd|secret|token|key|credential)[a-z_-]*")
"""A key of a handler whose value is hidden."""

_SECRET_NAMES = ("password", "passphrase", "secret", "token")
"""A key that is similar to one of these is taken for a misspelling of it."""

_DOTTED = re.compile(r"[A-Za-z_][\w.]*")

_SECRETS = (
    (re.compile(r"(://[^/\s:@]*:)[^/\s@]+@"), rf"\g<1>{HIDDEN}@"),
    (
        re.compile(r"((?:^(?!(?:milter:)?inet6?:\d)|\b(?:lmtp|relay):)[^\s/@:,]*:)[^\s/@]+@"),
        rf"\g<1>{HIDDEN}@",
    ),
    (re.compile(r"(?i)\b((?:password|passwd|secret|token|api_?key)=)[^,;&\s]+"), rf"\g<1>{HIDDEN}"),
)
"""Passwords in URLs and values of secret parameters in any text, each with its replacement."""

_BETWEEN = re.compile(r"[,;&?=@/:\s]+")
"""The delimiters in an argument: the text of an error may contain a single part of it."""


def printable(text: str, limit: int | None = LONGEST_NAME) -> str:
    r"""Return *text* with escapes for characters that are not printable: ``\x1b``, ``\n``.

    These are control characters, characters that change the direction of text, and surrogates.

    :param limit: maximum of characters that are kept; ``...`` replaces the rest. None: no limit
    """
    end = "..." if limit is not None and len(text) > limit else ""
    text = text[:limit]
    if not text.isprintable():
        text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return text + end


def hidden(text: str) -> str:
    """Return *text* with ``***`` for passwords in URLs and values of secret parameters."""
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


def shown_handler(entry: Any) -> Any:
    """Return a value of ``--handler`` with its arguments hidden: ``module:attr:***``.

    For a built-in handler or a table, only secrets are hidden.
    """
    if isinstance(entry, dict):
        return _shown_table(entry)
    text = str(entry)
    name, colon, rest = text.partition(":")
    front, comma, keys = name.partition(",")
    if front in BUILT_IN_NAMES and comma:  # without an argument
        keys = f"{keys}{colon}{rest}"
        return f"{front},{','.join(map(_shown_part, KEY_FOLLOWS.split(keys)))}"
    if not colon:
        return hidden(text)
    if name in BUILT_IN_NAMES - _WITHOUT_ARGUMENT:
        return f"{name}:{','.join(map(_shown_part, KEY_FOLLOWS.split(rest)))}"
    attr, _, arguments = rest.partition(":")
    if not _DOTTED.fullmatch(name) or not _DOTTED.fullmatch(attr):
        return f"{hidden(name)}:{HIDDEN}"  # perhaps a URL, or a misspelled name
    return f"{name}:{attr}:{HIDDEN}" if arguments else text


def _shown_part(part: str) -> str:
    key, equals, value = part.partition("=")
    return f"{key}={shown_value(key, value)}" if equals else hidden(part)


def shown_value(key: str, value: Any) -> Any:
    """Return the value of a handler's key, or ``***`` if it may be a secret."""
    if _SECRET_KEY.fullmatch(key) or get_close_matches(key.lower(), _SECRET_NAMES, 1, 0.7):
        return HIDDEN
    if isinstance(value, list):
        return [shown_value(key, each) for each in value]
    if isinstance(value, dict):
        return {name: shown_value(name, each) for name, each in value.items()}
    return hidden(value) if isinstance(value, str) else value


def _shown_table(table: dict[str, Any]) -> dict[str, Any]:
    """Return a table ``[[handler]]`` for display.

    For a user's handler, only the keys that the handler chain itself reads are shown.
    """
    if str(table.get("use")) in BUILT_IN_NAMES:
        return {key: shown_value(key, value) for key, value in table.items()}
    shown = {"use", "for", "copy", "quarantine", "name", "when"}
    return {key: value if key in shown else HIDDEN for key, value in table.items()}


def shown_handlers(value: Any) -> Any:
    """Return a value of the setting ``handler``, of any type, with arguments hidden."""
    if isinstance(value, (list, tuple)):
        return [shown_handlers(each) for each in value]
    return shown_handler(value) if isinstance(value, (str, dict)) else value


def without_arguments(error: str, arguments: str) -> str:
    """Return the text of an error with ``***`` for all parts of a handler's arguments in it."""
    parts = {arguments, *arguments.split(","), *_BETWEEN.split(arguments)}
    parts |= {unquote(part) for part in parts}
    parts |= {repr(part)[1:-1] for part in parts}
    for part in sorted(parts, key=len, reverse=True):
        if len(part) >= SHORTEST_SECRET:
            error = error.replace(part, HIDDEN)
    return hidden(error)
