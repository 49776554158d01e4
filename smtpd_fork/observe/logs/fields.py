"""The fields of a log entry. Their names are a contract, and do not change.

A field comes from ``extra=`` of the call that logs. Text from a client is a value only: names are
ours, and values are plain, bounded and without surrogates.
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

__all__ = ["FIELDS", "SessionFilter", "fields_of", "message_of", "plain", "traceback_of"]

FIELDS = {
    "time": "when, in UTC (RFC 3339), to the microsecond",
    "level": "`debug`, `info`, `warning`, `error` or `critical`",
    "logger": "which part says so: `smtpd_fork.session`, `smtpd_fork.gate`, a handler's own",
    "pid": "of the process",
    "message": "the line for people, without time and level",
    "session": "the session's id",
    "client": "the client's address and port, or `unix`",
    "address": "where it listens",
    "rule": "of a refusal: the rule that fired",
    "key": "of a refusal: the source or network that was counted",
    "count": "of a refusal: what the count would have been",
    "limit": "of a refusal: what it may be",
    "id": "of a refusal: its id, as the client was told",
    "more": "of a summary: so many more lines like it",
    "seconds": "of a summary: in so many seconds",
    "queue_id": "of a message: its id, as the client was told",
    "from": "of a message: its sender",
    "to": "of a message: how many recipients",
    "size": "of a message: bytes",
    "reason": "why a message was refused, or not written",
    "lost": "entries that could not be written",
    "traceback": "of an error: Python's traceback",
    "extra": "what a handler gave with `extra=`, an object",
}
"""All fields, with their meanings; docs/operation.md has the same table."""

MAX_TEXT = 8192
"""Characters of a value or a message; more is cut off. Our own lines are less than half as long."""

MAX_TRACEBACK = 16384
"""Characters of a traceback, counted from its end, where the error is."""

MAX_EXTRA = 32
"""Fields of a handler's own."""

MAX_EXTRA_TEXT = 1024
"""Characters of each of them."""

_GIVEN = (
    *("session", "client", "address", "more", "seconds", "queue_id"),
    *("from", "to", "size", "reason", "lost"),
)
"""Fields that ``extra=`` gives under their own names."""

_OTHERS = {
    *logging.makeLogRecord({}).__dict__,
    *("asctime", "message", "taskName", "refusal"),
    *_GIVEN,
}
"""Attributes of a record that are no fields of a handler."""


class SessionFilter(logging.Filter):
    """Adds the session's id to each record; drops none."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the session's id, unless the record has one."""
        if "session" not in record.__dict__:
            session = current_session.get()
            if session is not None:
                record.session = session
        return True


def message_of(record: logging.LogRecord) -> str:
    """Return the message of *record*, also if its arguments do not fit."""
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
    """Return the fields of *record*, in the order of :data:`FIELDS`, those it has."""
    given = record.__dict__
    found: dict[str, Any] = {
        "time": datetime.fromtimestamp(record.created, UTC)
        .isoformat(timespec="microseconds")
        .replace("+00:00", "Z"),
        "level": record.levelname.lower(),
        "logger": record.name,
        "pid": os.getpid(),
        "message": plain(message_of(record), 2 * MAX_TEXT),  # it is cut already
    }
    refusal = given.get("refusal")
    if isinstance(refusal, Full):
        refusal = refusal.refusal()
    if isinstance(refusal, Refusal):
        names = ("rule", "key", "count", "limit", "id")
        found.update({name: plain(getattr(refusal, name)) for name in names})
    found.update({name: plain(given[name]) for name in _GIVEN if name in given})
    text = traceback_of(record)
    if text:
        found["traceback"] = plain(text, MAX_TRACEBACK)
    if not given.keys() <= _OTHERS:
        extra = [name for name in given if name not in _OTHERS][:MAX_EXTRA]
        found["extra"] = {
            plain(name, MAX_EXTRA_TEXT): plain(given[name], MAX_EXTRA_TEXT) for name in extra
        }
    return {name: found[name] for name in FIELDS if name in found}


def plain(value: Any, limit: int = MAX_TEXT) -> Any:
    """Return *value* as JSON has it: a number, a boolean, null, or text that any parser takes."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    try:
        text = str(value)
    except Exception:  # noqa: BLE001 - __str__ of a handler's object may raise anything
        text = f"<{type(value).__name__}>"
    # Surrogates are escaped: RFC 8259 8.2 leaves open what a parser does with them.
    return _cut(text, limit).encode("utf-8", "backslashreplace").decode()


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text) - limit} more)"
