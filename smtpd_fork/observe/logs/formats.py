"""Formats: a record as text for people, as JSON for machines, as journald has it.

Whatever a client has sent, an entry is one entry: no byte of a stranger's ends a line, begins one,
or speaks to a terminal.
"""

from __future__ import annotations

import json
import logging
import struct
from typing import TYPE_CHECKING, Any

from pythonjsonlogger.json import JsonFormatter

from smtpd_fork.observe.logs.fields import fields_of, message_of, traceback_of
from smtpd_fork.sanitizer import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    Encode = Callable[[logging.LogRecord], list[bytes]]
    """Returns an entry as its place takes it: the bytes of a line, or datagrams."""

__all__ = ["JsonFormat", "TextFormat", "for_journald", "for_stream", "for_syslog"]

IDENTIFIER = "smtpd-fork"
"""The program's name in syslog and in the journal."""

FACILITY = 2
"""LOG_MAIL (syslog(3))."""

_INDENT = "  "
"""In front of the lines of a traceback: no line of an entry but its first begins as one does."""

_NOT_OURS = {"time", "level", "pid", "message", "traceback"}
"""Fields for which journald has its own, or which are in MESSAGE."""


def _told(record: logging.LogRecord) -> str:
    """Return the message on one line, with the session's id in it."""
    text = printable(message_of(record), None)
    session = record.__dict__.get("session")
    if session is None or f"[{session}" in text or f" {session} " in text:
        return text
    return f"[{printable(str(session), None)}] {text}"


def _rest(record: logging.LogRecord) -> list[str]:
    """Return the lines of the traceback."""
    text = traceback_of(record)
    return [_INDENT + printable(line, None) for line in text.split("\n")] if text else []


class TextFormat(logging.Formatter):
    """Time, level and message; a traceback below it, indented.

    :param head: of the first line, in the way of :class:`logging.Formatter`
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return *record* as text: one line, and the traceback's."""
        record.message = _told(record)
        if self.usesTime():
            record.asctime = self.formatTime(record, self.datefmt)
        return "\n".join([self.formatMessage(record), *_rest(record)])


class JsonFormat(JsonFormatter):
    """One object a line, of :data:`~smtpd_fork.observe.logs.FIELDS`, in ASCII."""

    def format(self, record: logging.LogRecord) -> str:
        """Return *record* as JSON (RFC 8259), on one line."""
        return self.serialize_log_record(fields_of(record)).replace("\x7f", "\\u007f")


def for_stream(formatter: logging.Formatter) -> Encode:
    """Return what makes lines of a record."""

    def encode(record: logging.LogRecord) -> list[bytes]:
        return [(formatter.format(record) + "\n").encode("utf-8", "backslashreplace")]

    return encode


def _severity(record: logging.LogRecord) -> int:
    """Return syslog(3)'s word for a level; also that of levels between Python's."""
    for level, severity in ((50, 2), (40, 3), (30, 4), (20, 6)):
        if record.levelno >= level:
            return severity
    return 7


def for_syslog(formatter: logging.Formatter | None) -> Encode:
    """Return what makes datagrams of a record, as /dev/log takes them (RFC 3164, local form).

    Each line of a traceback is a datagram with the session's id: syslogs know no second line, and
    other programs' lines may come between.

    :param formatter: of the text; None is ours
    """

    def encode(record: logging.LogRecord) -> list[bytes]:
        if formatter is not None:
            lines = [formatter.format(record)]
        else:
            session = record.__dict__.get("session")
            name = f"[{printable(str(session), None)}]" if session is not None else ""
            lines = [f"{record.levelname} {_told(record)}"]
            lines += [f"{record.levelname} {name}{line}" for line in _rest(record)]
        head = f"<{FACILITY * 8 + _severity(record)}>{IDENTIFIER}[{record.process}]: "
        return [f"{head}{line}".encode("utf-8", "backslashreplace") for line in lines]

    return encode


def _packed(name: str, text: str) -> bytes:
    """Return one field of the native protocol: a line, or, of several lines, with its length."""
    value = text.encode("utf-8", "backslashreplace")
    if b"\n" not in value:
        return b"%s=%s\n" % (name.encode(), value)
    return b"%s\n%s%s\n" % (name.encode(), struct.pack("<Q", len(value)), value)


def for_journald(formatter: logging.Formatter | None) -> Encode:
    """Return what makes an entry of systemd's native journal protocol of a record.

    See systemd's "Native Journal Protocol". Our fields are there as ``SMTPD_FORK_SESSION`` and so
    on, so ``journalctl SMTPD_FORK_SESSION=ID`` finds all of a session.

    :param formatter: of ``MESSAGE``; None is the message, with the traceback below it
    """

    def encode(record: logging.LogRecord) -> list[bytes]:
        if formatter is not None:
            text = formatter.format(record)
        else:
            text = "\n".join([_told(record), *_rest(record)])
        pairs: dict[str, Any] = {
            "MESSAGE": text,
            "PRIORITY": _severity(record),
            "SYSLOG_FACILITY": FACILITY,
            "SYSLOG_IDENTIFIER": IDENTIFIER,
            "SYSLOG_PID": record.process,
        }
        for name, value in fields_of(record).items():
            if name not in _NOT_OURS:
                shown = json.dumps(value) if name == "extra" else value
                pairs[f"SMTPD_FORK_{name.upper()}"] = shown
        return [b"".join(_packed(name, str(value)) for name, value in pairs.items())]

    return encode
