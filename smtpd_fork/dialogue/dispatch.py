"""Dispatch: finds the function of a command line, and calls it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from smtpd_fork.dialogue import replies
from smtpd_fork.dialogue.client_log import log_debug
from smtpd_fork.dialogue.commands import COMMANDS
from smtpd_fork.dialogue.framer import LINE_LIMIT

if TYPE_CHECKING:
    from smtpd_fork.dialogue.command_table import Row
    from smtpd_fork.dialogue.dialogue import Dialogue
    from smtpd_fork.dialogue.waiting import Result

__all__ = ["act_on_line", "echo", "perform"]

EXTENSION_OCTETS = {b"MAIL": 26 + 10 + 20 + 500 + 110, b"RCPT": 500 + 30, b"AUTH": LINE_LIMIT}
"""Additional octets of a command, by extension: SIZE, SMTPUTF8, BODY, AUTH, RET and ENVID; ORCPT
and NOTIFY; AUTH."""

TRUSTED_LIMIT = 2048
"""Octets of XCLIENT and XFORWARD, which are allowed before EHLO: Postfix's limit of a line."""

LONGEST_ECHO = 40

_HELLOS = {b"EHLO", b"HELO", b"LHLO"}
_UNPRINTABLE = re.compile(r"[^ -~]")


def act_on_line(dialogue: Dialogue, line: bytes) -> Result:
    """Carry out a command line if it is well-formed and in sequence; return the result."""
    if dialogue.debug:
        log_debug(dialogue, f">> {_loggable(line)}")
    word, _, rest = line.partition(b" ")
    if b"\t" in word:  # a tab separates words as a space does
        word, _, rest = line.replace(b"\t", b" ", 1).partition(b" ")
    word = word.upper()
    dialogue.line = word if word == b"AUTH" else line
    dialogue.row = dialogue.rows.get(word) or dialogue.rows[b""]
    fault, argument = _read(dialogue, word, rest.strip())
    if fault is None and len(line) > _limit(dialogue, word):
        fault = replies.LONG_COMMAND
    if fault is not None:
        return dialogue.invalid_command(fault)
    if word not in dialogue.rows:
        argument = word.decode("ascii")
    row = dialogue.row
    refused = row.guarded[dialogue.state]
    if refused is not None:
        return refused
    limits = dialogue.shared.call_limits
    if limits is not None and not _within_calls(dialogue, limits, word.decode()):
        return f"421 4.7.0 {echo(word.decode())} sent too many times\r\n".encode()
    return perform(dialogue, row, argument)


def perform(dialogue: Dialogue, row: Row, argument: str | None) -> Result:
    """Carry out a command if it is in sequence; return the result."""
    refused = row.misplaced[dialogue.state]
    if refused is not None:
        return refused
    if row.parse is None:
        return row.run(dialogue, argument)
    parsed = row.parse(dialogue, argument)
    if isinstance(parsed, bytes):
        return parsed
    return row.late[dialogue.state] or row.run(dialogue, *parsed)


def echo(text: str) -> str:
    """Return a client's text for a reply: printable, and cut off at LONGEST_ECHO."""
    return _UNPRINTABLE.sub("?", text[:LONGEST_ECHO])


def _read(dialogue: Dialogue, word: bytes, rest: bytes) -> tuple[replies.Text | None, str | None]:
    """Return the error of a command, and its argument as text or None."""
    utf8 = dialogue.shared.enable_SMTPUTF8
    if not word or not word.isascii():
        return replies.BAD_SYNTAX, None
    if word in _HELLOS:
        # Other bytes are escaped (\\xe9), so that the name can be printed, logged and sent
        # without loss.
        return None, rest.decode("utf-8" if utf8 else "ascii", "backslashreplace") or None
    if not utf8 and not rest.isascii():
        return replies.NOT_ASCII, None
    try:
        return None, rest.decode() or None
    except UnicodeDecodeError:
        return replies.BAD_SYNTAX, None


def _limit(dialogue: Dialogue, word: bytes) -> int:
    """Return the maximum length of a command line (RFC 5321 4.5.3.1.4)."""
    limit = dialogue.shared.command_size_limit
    if dialogue.may_send and word.decode() in dialogue.may_send:
        return max(limit, TRUSTED_LIMIT)
    return limit + EXTENSION_OCTETS.get(word, 0) if dialogue.session.extended_smtp else limit


def _within_calls(dialogue: Dialogue, limits: dict[str, int], name: str) -> bool:
    """Count a call of a command for aiosmtpd's command_call_limit; return whether it is allowed.

    BDAT is counted as DATA, once for each message, unless it has a limit of its own.
    """
    if name == "BDAT" and name not in limits:
        if dialogue.chunks is not None:
            return True
        name = "DATA"
    if dialogue.calls is None:
        dialogue.calls = {}
    left = dialogue.calls.get(name, limits.get(name, dialogue.shared.call_limit_default))
    dialogue.calls[name] = left - 1
    return left > 0


_SHOWN = re.compile(
    rb"(?:(?:EHLO|HELO|LHLO)[ \t]+\S+|(?:MAIL[ \t]+FROM|RCPT[ \t]+TO):[ \t]*(?:<|\S+@).*"
    rb"|BDAT +\d+(?: +LAST)?"
    rb"|DATA|HELP|NOOP|QUIT|RSET|STARTTLS) *",
    re.IGNORECASE | re.DOTALL,
)
"""Commands that the log may contain unchanged."""

_NAMES = {command.name for command in COMMANDS}


def _loggable(line: bytes) -> str:
    """Return a command for the log: on one line, without credentials or text of a message.

    For other commands it is only their name. Other lines are not shown at all: clients that do not
    wait for replies send the password after a rejected AUTH, or the message after a rejected DATA.
    """
    if _SHOWN.fullmatch(line):
        return repr(line)[1:]
    name = line.split(maxsplit=1)[:1]
    word = name[0].upper().decode("ascii", "replace") if name else ""
    return f"{word} ..." if word in _NAMES else f"({len(line)} octets, not a command)"
