"""The formats of log entries: text, JSON, syslog and systemd's journal.

No byte from a client can end or begin a line, or control a terminal, so that an entry is always one
entry. The values of fields have simple types, so :func:`json.dumps` is sufficient for JSON.
"""

from __future__ import annotations

import json
import logging
import struct
import time
from collections.abc import Callable
from logging.handlers import SysLogHandler
from typing import Any, TypeAlias

from smtpd_fork.observe.logs.fields import fields_of, message_of, traceback_of
from smtpd_fork.sanitizer import printable

__all__ = ["Encode", "JsonFormat", "TextFormat", "for_journald", "for_stream", "for_syslog"]

Encode: TypeAlias = Callable[[logging.LogRecord], list[bytes]]
"""Returns a record in the format of the target: the bytes of a line, or datagrams."""

IDENTIFIER = "smtpd-fork"
"""Name of the program in syslog and in the journal."""

FACILITY = SysLogHandler.LOG_MAIL

_SEVERITIES = (
    (logging.CRITICAL, SysLogHandler.LOG_CRIT),
    (logging.ERROR, SysLogHandler.LOG_ERR),
    (logging.WARNING, SysLogHandler.LOG_WARNING),
    (logging.INFO, SysLogHandler.LOG_INFO),
)
"""Severities of syslog(3) with the lowest level of each; a handler may use levels in between."""

_INDENT = "  "
"""Text before each line of a traceback, so that it does not look like a new entry."""

_NOT_PREFIXED = {"time", "level", "pid", "message", "traceback"}
"""Fields that journald records itself, or that are in MESSAGE."""


def _message(record: logging.LogRecord) -> str:
    """Return the message on one line, with the session's id."""
    text = printable(message_of(record), None)
    session = record.__dict__.get("session")
    if session is None or f"[{session}" in text or f" {session} " in text:
        return text
    return f"[{printable(str(session), None)}] {text}"


def _traceback(record: logging.LogRecord) -> list[str]:
    """Return the indented lines of the traceback; empty without a traceback."""
    text = traceback_of(record)
    return [_INDENT + printable(line, None) for line in text.split("\n")] if text else []


class TextFormat(logging.Formatter):
    """Formats an entry as one line, followed by the indented traceback."""

    _second = (-1, "")  # cache of the last second as text: many entries have the same

    def format(self, record: logging.LogRecord) -> str:
        """Return *record* as text."""
        record.message = _message(record)
        record.asctime = self.formatTime(record)
        return "\n".join([self.formatMessage(record), *_traceback(record)])

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """Return the local time in the default format of :mod:`logging`."""
        second = int(record.created)
        if second != self._second[0]:
            self._second = (second, time.strftime(self.default_time_format, time.localtime(second)))
        return f"{self._second[1]},{int(record.msecs):03}"


class JsonFormat(logging.Formatter):
    """Formats an entry as a JSON object on one line in ASCII (see :data:`FIELDS`)."""

    def format(self, record: logging.LogRecord) -> str:
        """Return *record* as JSON (RFC 8259), on one line."""
        return json.dumps(fields_of(record)).replace("\x7f", "\\u007f")


def for_stream(formatter: logging.Formatter) -> Encode:
    """Return an encoder for files, pipes and terminals."""

    def encode(record: logging.LogRecord) -> list[bytes]:
        return [(formatter.format(record) + "\n").encode("utf-8", "backslashreplace")]

    return encode


def _severity(record: logging.LogRecord) -> int:
    found = (severity for level, severity in _SEVERITIES if record.levelno >= level)
    return next(found, SysLogHandler.LOG_DEBUG)


def for_syslog(formatter: logging.Formatter | None) -> Encode:
    """Return an encoder for /dev/log (RFC 3164, in its local form).

    Each line of a traceback is a datagram of its own with the session's id: syslog does not support
    several lines, and lines of other programs may be in between.

    :param formatter: formats the text; None: level, message and traceback
    """

    def encode(record: logging.LogRecord) -> list[bytes]:
        if formatter is not None:
            lines = [formatter.format(record)]
        else:
            session = record.__dict__.get("session")
            name = f"[{printable(str(session), None)}]" if session is not None else ""
            lines = [f"{record.levelname} {_message(record)}"]
            lines += [f"{record.levelname} {name}{line}" for line in _traceback(record)]
        head = f"<{FACILITY * 8 + _severity(record)}>{IDENTIFIER}[{record.process}]: "
        return [f"{head}{line}".encode("utf-8", "backslashreplace") for line in lines]

    return encode


def _packed(name: str, text: str) -> bytes:
    """Return a field in the native protocol: one line, or the length and several lines."""
    value = text.encode("utf-8", "backslashreplace")
    if b"\n" not in value:
        return b"%s=%s\n" % (name.encode(), value)
    return b"%s\n%s%s\n" % (name.encode(), struct.pack("<Q", len(value)), value)


def for_journald(formatter: logging.Formatter | None) -> Encode:
    """Return an encoder for systemd's Native Journal Protocol.

    The fields have names such as ``SMTPD_FORK_SESSION``, so that ``journalctl
    SMTPD_FORK_SESSION=ID`` finds all entries of a session.

    :param formatter: formats ``MESSAGE``; None: the message, followed by the traceback
    """

    def encode(record: logging.LogRecord) -> list[bytes]:
        if formatter is not None:
            text = formatter.format(record)
        else:
            text = "\n".join([_message(record), *_traceback(record)])
        pairs: dict[str, Any] = {
            "MESSAGE": text,
            "PRIORITY": _severity(record),
            "SYSLOG_FACILITY": FACILITY,
            "SYSLOG_IDENTIFIER": IDENTIFIER,
            "SYSLOG_PID": record.process,
        }
        for name, value in fields_of(record).items():
            if name not in _NOT_PREFIXED:
                shown = json.dumps(value) if name == "extra" else value
                pairs[f"SMTPD_FORK_{name.upper()}"] = shown
        return [b"".join(_packed(name, str(value)) for name, value in pairs.items())]

    return encode
