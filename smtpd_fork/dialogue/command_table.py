"""The table of commands, prepared for the sessions of one server.

The reply to a command follows from its row, the state, and a required TLS or AUTH. It is computed
here once, so that a command needs only a lookup in a tuple.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any

from smtpd_fork.dialogue import auth, data, mail, replies, session_commands, trusted_commands
from smtpd_fork.dialogue.commands import COMMANDS, State
from smtpd_fork.dialogue.tally import OTHER, ReplyCounts
from smtpd_fork.dialogue.wrong_protocol import HTTP_METHODS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from smtpd_fork.dialogue.commands import Command
    from smtpd_fork.dialogue.dialogue import Dialogue
    from smtpd_fork.dialogue.replies import Text
    from smtpd_fork.dialogue.shared import Shared
    from smtpd_fork.dialogue.waiting import Result

    Parse = Callable[[Dialogue, str | None], tuple[Any, ...] | bytes]
    """Parses the argument; returns the arguments of *run*, or the reply to a malformed one."""
    Run = Callable[..., Result]

__all__ = ["Guard", "Row", "Rows", "connect_row", "rows_of"]

_RUN: dict[str, tuple[Parse | None, Run]] = {
    "AUTH": (auth.parse_auth, auth.begin_auth),
    "BDAT": (None, data.bdat),
    "DATA": (partial(session_commands.no_argument, "DATA"), data.data),
    "EHLO": (partial(session_commands.parse_name, "EHLO"), session_commands.ehlo),
    "ETRN": (None, session_commands.not_implemented),
    "EXPN": (None, session_commands.not_implemented),
    "HELO": (partial(session_commands.parse_name, "HELO"), session_commands.helo),
    "HELP": (None, session_commands.help_),
    "LHLO": (partial(session_commands.parse_name, "LHLO"), session_commands.ehlo),
    "MAIL": (mail.parse_mail, mail.mail),
    "NOOP": (None, session_commands.noop),
    "QUIT": (partial(session_commands.no_argument, "QUIT"), session_commands.quit_),
    "RCPT": (mail.parse_rcpt, mail.rcpt),
    "RSET": (partial(session_commands.no_argument, "RSET"), session_commands.rset),
    "STARTTLS": (partial(session_commands.no_argument, "STARTTLS"), session_commands.starttls),
    "TURN": (None, session_commands.not_implemented),
    "VRFY": (None, session_commands.vrfy),
    "XCLIENT": (partial(trusted_commands.parse, "XCLIENT"), trusted_commands.xclient),
    "XFORWARD": (partial(trusted_commands.parse, "XFORWARD"), trusted_commands.xforward),
}
"""The functions that parse the argument of a command, and that carry the command out."""

AUTH_REQUIRED = b"530 5.7.0 Authentication required\r\n"
"""aiosmtpd's reply, which always has its enhanced status code."""


ByState = tuple[bytes | None, ...]
"""Replies by state; None: the command is allowed."""

_NEVER: ByState = (None,) * len(State)


class Guard(Enum):
    """A requirement that a client must fulfil before it may send mail."""

    TLS = "STARTTLS is required"
    AUTH = "AUTH is required"
    NOTHING = "nothing"


@dataclass(eq=False, slots=True)
class Row:
    """A command, for sessions with one requirement."""

    run: Run  # carries the command out
    parse: Parse | None = None  # parses the argument; None: *run* does
    _: KW_ONLY
    name: str = "command"  # for the log; never a word that a client sent
    replies: ReplyCounts
    guarded: ByState  # rejected as TLS is required first
    misplaced: ByState = _NEVER  # out of sequence, checked before the argument
    late: ByState = _NEVER  # out of sequence, checked after the argument
    refused: ByState = field(init=False)  # the first reply of these three
    inherited: Row | None = None  # the built-in command that a subclass overrides with this one

    def __post_init__(self) -> None:
        each = zip(self.guarded, self.misplaced, self.late, strict=True)
        self.refused = tuple(a or b or c for a, b, c in each)


Rows = dict[bytes, Row]
"""Rows by command; the row of unknown commands has the key b""."""


def connect_row(shared: Shared) -> Row:
    """Return the row for the time before the first command: the connection that is greeted."""
    replies = shared.tally.replies["CONNECT"]
    return Row(session_commands.unknown, name="connection", replies=replies, guarded=_NEVER)


def rows_of(shared: Shared, guard: Guard) -> Rows:
    """Return the table for sessions of a server with the requirement *guard*."""
    by_name = {command.name: command for command in COMMANDS}

    def guarded(name: str) -> ByState:
        command = by_name.get(name)
        before_tls = command is not None and command.before_tls
        needs_tls = guard is Guard.TLS and not before_tls
        reply = shared.encode(replies.STARTTLS_FIRST) if needs_tls else None
        barred = None if name == "QUIT" else shared.encode(replies.LACKS_SECURITY)
        return tuple(barred if s is State.BARRED else reply for s in State)

    others = shared.tally.replies[OTHER]
    # A browser, or a web page that makes a browser connect here (a cross-protocol attack).
    of_http = Row(session_commands.http, replies=others, guarded=guarded(""))
    rows = dict.fromkeys(HTTP_METHODS, of_http)
    rows[b""] = Row(session_commands.unknown, replies=others, guarded=guarded(""))
    for command in COMMANDS:
        unknown = command.name in trusted_commands.NAMES and command.name not in shared.trusted
        if (shared.lmtp or not command.lmtp) and not unknown:
            parse, run = _RUN[command.name]
            rows[command.name.encode()] = Row(
                run,
                parse,
                name=command.name,
                replies=shared.tally.replies[command.name],
                guarded=guarded(command.name),
                misplaced=_misplaced(shared, command, guard),
                late=_by_state(shared, command.late),
            )
    for name in shared.subclass_commands:
        rows[name.encode()] = Row(
            partial(session_commands.subclass_command, name),
            name=name,
            replies=shared.tally.replies.get(name, shared.tally.replies[OTHER]),
            guarded=guarded(name),
            inherited=rows.get(name.encode()),
        )
    return rows


def _misplaced(shared: Shared, command: Command, guard: Guard) -> ByState:
    if command.lmtp is False and shared.lmtp:
        return (shared.encode(replies.THIS_IS_LMTP),) * len(State)
    found = _by_state(shared, command.otherwise)
    if not command.needs_auth or guard is not Guard.AUTH:
        return found
    # A client without HELO or EHLO gets the reply "send HELO first".
    return found[State.HELLO] or AUTH_REQUIRED, *[AUTH_REQUIRED] * (len(found) - 1)


def _by_state(shared: Shared, texts: Mapping[State, Text]) -> ByState:
    return tuple(shared.encode(texts[s]) if s in texts else None for s in State)
