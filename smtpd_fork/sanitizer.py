"""Sanitizer: text from clients and settings, made fit for terminals, logs and error messages.

Nothing that a client sends acts on a terminal. An argument of a handler may be a password, and only
the handler knows, so none is shown.
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
"""Characters; shorter arguments are left in an error's text, which would be unreadable."""

BUILT_IN_NAMES = frozenset({
    "accept", "auth", "debug", "discard", "lmtp", "maildir", "mbox", "milter", "nats", "pipe",
    "policy", "redis", "relay", "rspamd", "s3", "webhook",
})  # fmt: skip
"""Names of handlers whose keys are known, so that only secrets need be hidden."""

_WITHOUT_ARGUMENT = {"debug", "discard"}
"""Built-in handlers that have no keys: what is given to them is a mistake, and perhaps a secret."""

KEY_FOLLOWS = re.compile(r",(?=[a-z][a-z0-9_.-]*=)")
"""The commas of ``NAME:ARGUMENT,KEY=VALUE``; others belong to the argument or to the value."""

_SECRET_KEY = re.compile(r"(?i)[a-z_.-]*(?:password|passwd|secret|token|key|credential)[a-z_-]*")
"""A key of a handler whose value is not shown."""

_SECRET_NAMES = ("password", "passphrase", "secret", "token")
"""A key that is nearly one of these is one with a typing error."""

_DOTTED = re.compile(r"[A-Za-z_][\w.]*")

_SECRETS = (
    (re.compile(r"(://[^/\s:@]*:)[^/\s@]+@"), rf"\g<1>{HIDDEN}@"),
    (
        re.compile(r"((?:^(?!(?:milter:)?inet6?:\d)|\b(?:lmtp|relay):)[^\s/@:,]*:)[^\s/@]+@"),
        rf"\g<1>{HIDDEN}@",
    ),
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


def shown_handler(entry: Any) -> Any:
    """Return a value of ``--handler`` without its arguments: ``module:attr:***``.

    Of a built-in handler, or of a table, the secrets alone are not shown.
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
        return f"{hidden(name)}:{HIDDEN}"  # a URL, perhaps, or a typing error
    return f"{name}:{attr}:{HIDDEN}" if arguments else text


def _shown_part(part: str) -> str:
    key, equals, value = part.partition("=")
    return f"{key}={shown_value(key, value)}" if equals else hidden(part)


def shown_value(key: str, value: Any) -> Any:
    """Return the value of a handler's key, or what stands for it if it may be a secret."""
    if _SECRET_KEY.fullmatch(key) or get_close_matches(key.lower(), _SECRET_NAMES, 1, 0.7):
        return HIDDEN
    if isinstance(value, list):
        return [shown_value(key, each) for each in value]
    if isinstance(value, dict):
        return {name: shown_value(name, each) for name, each in value.items()}
    return hidden(value) if isinstance(value, str) else value


def _shown_table(table: dict[str, Any]) -> dict[str, Any]:
    """Return a table ``[[handler]]``; of a handler of others only what the chain reads is shown."""
    if str(table.get("use")) in BUILT_IN_NAMES:
        return {key: shown_value(key, value) for key, value in table.items()}
    shown = {"use", "for", "copy", "quarantine", "name", "when"}
    return {key: value if key in shown else HIDDEN for key, value in table.items()}


def shown_handlers(value: Any) -> Any:
    """Return a value that was given for ``handler``, whatever it is, without arguments."""
    if isinstance(value, (list, tuple)):
        return [shown_handlers(each) for each in value]
    return shown_handler(value) if isinstance(value, (str, dict)) else value


def without_arguments(error: str, arguments: str) -> str:
    """Return the text of an error without what it repeats of a handler's arguments."""
    parts = {arguments, *arguments.split(","), *_BETWEEN.split(arguments)}
    parts |= {unquote(part) for part in parts}
    parts |= {repr(part)[1:-1] for part in parts}
    for part in sorted(parts, key=len, reverse=True):
        if len(part) >= SHORTEST_SECRET:
            error = error.replace(part, HIDDEN)
    return hidden(error)
