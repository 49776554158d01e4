"""The fields of a log entry. Their names are part of the public interface, and must not change.

A field comes from ``extra=`` of the logging call. Text from a client is only used as a value, never
as a name. Values have simple types, a limited length, and no surrogates.
"""

from __future__ import annotations

import logging
import math
import os
import traceback
from datetime import UTC, datetime
from typing import Any

from smtpd_fork.dialogue import current_session
from smtpd_fork.gate import Full, Refusal

__all__ = ["FIELDS", "add_session", "fields_of", "message_of", "plain", "traceback_of"]

FIELDS = {
    "time": "time in UTC (RFC 3339), with microseconds",
    "level": "`debug`, `info`, `warning`, `error` or `critical`",
    "logger": "name of the logger: `smtpd_fork.session`, `smtpd_fork.gate`, a handler's own",
    "pid": "ID of the process",
    "message": "the text, without time and level",
    "session": "the session's id",
    "client": "the client's address and port, or `unix`",
    "address": "address of the listener",
    "rule": "refusal: the rule",
    "key": "refusal: the client or network that was counted",
    "count": "refusal: the count including this client",
    "limit": "refusal: the limit",
    "id": "refusal: its ID, as in the reply",
    "more": "summary: number of further lines like it",
    "seconds": "summary: period in seconds",
    "queue_id": "message: its ID, as in the reply",
    "from": "message: the sender",
    "to": "message: number of recipients",
    "size": "message: size in bytes",
    "server": "message: the server that accepted it from a sink",
    "reason": "why a client was refused, a command or message rejected, or something failed",
    "command": "rejection: the command",
    "reply": "rejection: the reply",
    "recipient": "rejection: the recipient, or the first one",
    "helo": "rejection: the name the client gave itself",
    "score": "message, rejection: the score that filters gave, unless 0",
    "tags": "message, rejection: the tags that filters gave, separated by commas",
    "orig_client": "message, rejection: the client that a relaying host names by XFORWARD",
    "orig_queue_id": "message, rejection: the ID of the message at that host",
    "user": "AUTH: the user, as the client named it",
    "lost": "entries that could not be written",
    "traceback": "error: Python's traceback",
    "extra": "fields that a handler gave with `extra=`, an object",
}
"""All fields with their meanings; docs/operation.md has the same table."""

MAX_TEXT = 8192
"""Maximum characters of a value or a message; the rest is cut off. smtpd-fork's own lines are less
than half as long."""

MAX_TRACEBACK = 16384
"""Maximum characters of a traceback; the end is kept, as it has the error."""

MAX_EXTRA = 32
"""Maximum number of fields that a handler adds."""

MAX_EXTRA_TEXT = 1024
"""Maximum characters of each of them."""

_EXTRA_FIELDS = (
    *("session", "client", "address", "more", "seconds", "queue_id"),
    *("from", "to", "size", "server", "reason", "lost", "command", "reply", "recipient", "helo"),
    *("score", "tags", "orig_client", "orig_queue_id", "user"),
)
"""Fields that come from ``extra=`` under their own names."""

_STANDARD_ATTRIBUTES = {
    *logging.makeLogRecord({}).__dict__,
    *("asctime", "message", "taskName", "refusal"),
    *_EXTRA_FIELDS,
}
"""Attributes of a record that are not fields of a handler."""


def add_session(record: logging.LogRecord) -> bool:
    """Add the session's id to a record that has none; a logging filter that accepts all records."""
    if "session" not in record.__dict__ and (session := current_session.get()) is not None:
        record.session = session
    return True


def message_of(record: logging.LogRecord) -> str:
    """Return the message of *record*; if it cannot be formatted, the format string."""
    try:
        text = record.getMessage()
    except Exception:  # noqa: BLE001 - a handler may log with a wrong format
        text = f"{record.msg} (not formatted: its arguments do not fit)"
    return _cut(text, MAX_TEXT)


def traceback_of(record: logging.LogRecord) -> str:
    """Return the traceback and the stack of *record*; empty if it has none."""
    parts = []
    if record.exc_info and record.exc_info[1] is not None:
        parts.append("".join(traceback.format_exception(record.exc_info[1])).rstrip("\n"))
    elif record.exc_text:
        parts.append(record.exc_text)
    if record.stack_info:
        parts.append(record.stack_info)
    return "\n".join(parts)[-MAX_TRACEBACK:]


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """Return the fields that *record* has, in the order of :data:`FIELDS`."""
    given = record.__dict__
    created = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds")
    found: dict[str, Any] = {
        "time": created.replace("+00:00", "Z"),
        "level": record.levelname.lower(),
        "logger": record.name,
        "pid": os.getpid(),
        "message": plain(message_of(record), 2 * MAX_TEXT),  # message_of() has cut it
        **_of_refusal(given.get("refusal")),
        **{name: plain(given[name]) for name in _EXTRA_FIELDS if name in given},
    }
    if text := traceback_of(record):
        found["traceback"] = plain(text, MAX_TRACEBACK)
    if not given.keys() <= _STANDARD_ATTRIBUTES:
        extra = [name for name in given if name not in _STANDARD_ATTRIBUTES][:MAX_EXTRA]
        found["extra"] = {
            plain(name, MAX_EXTRA_TEXT): plain(given[name], MAX_EXTRA_TEXT) for name in extra
        }
    return {name: found[name] for name in FIELDS if name in found}


def _of_refusal(refusal: object) -> dict[str, Any]:
    if isinstance(refusal, Full):
        refusal = refusal.refusal()
    if not isinstance(refusal, Refusal):
        return {}
    names = ("rule", "key", "count", "limit", "id", "reason")
    known = tuple(name for name in ("client", "session") if getattr(refusal, name))
    return {name: plain(getattr(refusal, name)) for name in names + known}


def plain(value: Any, limit: int = MAX_TEXT) -> Any:
    """Return *value* as a number, a boolean, None, or text that any JSON parser accepts."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    try:
        text = str(value)
    except Exception:  # noqa: BLE001 - __str__ of a handler's object may raise anything
        text = f"<{type(value).__name__}>"
    # Surrogates are escaped, as parsers treat them differently (RFC 8259 8.2).
    return _cut(text, limit).encode("utf-8", "backslashreplace").decode()


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text) - limit} more)"
