"""Rejections: the commands and messages of a session that got a reply 4yz or 5yz.

Each is logged, counted by its reason, and remembered for ``smtpd-fork explain``. If a client causes
many in a short time, they are logged as one line with a count (see
:class:`~smtpd_fork.gate.reporter.Reporter`).
"""

from __future__ import annotations

import logging
import re
from collections import Counter, deque
from typing import TYPE_CHECKING, NamedTuple

from smtpd_fork.dialogue.client_log import peer_of
from smtpd_fork.dialogue.notes import Marks, marks_of
from smtpd_fork.dialogue.origin import Origin
from smtpd_fork.dialogue.path import parse_path
from smtpd_fork.gate import ClientLine
from smtpd_fork.peer_address import host_of
from smtpd_fork.sanitizer import printable

if TYPE_CHECKING:
    from smtpd_fork.dialogue.dialogue import Dialogue

__all__ = [
    "MEANINGS", "REASONS", "Rejection", "Rejections", "line_of", "note_rejection", "rejection_of",
]  # fmt: skip

log = logging.getLogger("smtpd_fork.session")

REMEMBERED = 1000
"""Number of rejections that can be explained; the same as for refusals before the greeting."""

LONGEST_SHOWN = 200
"""Characters of a reply, an address or a name in the log."""

ROOM_FOR_ID = 480
"""Octets of a reply after which the session id still fits in the 512 octets of a line (RFC 5321
4.5.3.1.5)."""

REASONS = {
    "5.1.3": "address",
    "5.1.7": "address",
    "4.3.0": "handler_failed",
    "4.3.1": "memory",
    "4.3.2": "shutdown",
    "5.3.4": "message_size",
    "4.4.2": "timeout",
    "5.5.1": "sequence",
    "5.5.2": "syntax",
    "5.4.6": "mail_loop",
    "4.5.3": "too_many_recipients",
    "5.5.4": "parameter",
    "5.6.0": "message_content",
    "5.6.7": "address",
    "5.6.11": "message_content",
    "4.7.0": "abuse",
    "5.7.0": "tls_or_auth_required",
    "5.7.8": "authentication",
    "5.7.11": "tls_or_auth_required",
}
"""The reason of a rejection by this server, by the enhanced status code of the reply (RFC 3463)."""

BY_HANDLER = "handler"
UNKNOWN = "other"
"""The reasons for replies of handlers, and for replies without an enhanced status code."""

MEANINGS = {
    "abuse": "too many errors, rejected commands or failed attempts to authenticate: 421",
    "address": "a malformed address, or one that needs SMTPUTF8: 553",
    "authentication": "wrong credentials: 535",
    "handler": "a handler answered 4xx or 5xx",
    "handler_failed": "a handler raised an exception, or took too long: 451",
    "mail_loop": "more than --max-hops Received fields: 554",
    "memory": "--max-buffered is used up: 452",
    "message_content": "bare CR or LF, NUL, a line that is too long, or not ASCII: 550, 500",
    "message_size": "larger than --max-message-size: 552",
    "other": "a reply without an enhanced status code",
    "parameter": "an unknown or malformed parameter: 501, 555",
    "sequence": "a command in the wrong order, or an unknown one: 503, 500",
    "shutdown": "the server stops, or an administrator ended the session: 421",
    "syntax": "a line that is not a command: 500",
    "timeout": "no command within --timeout: 421",
    "tls_or_auth_required": "STARTTLS or AUTH is required first: 530, 538",
    "too_many_recipients": "more than --max-recipients: 452",
}
"""The meaning of each reason; docs/monitoring.md has the same table."""

PROTOCOL = {"sequence", "syntax", "parameter", "tls_or_auth_required"}
"""Reasons that concern the client's program; for the others, the reply has the session id."""

_QUOTED = re.compile(r' ".*"')
_ENHANCED = re.compile(rb"[45]\d\d[ -]([45]\.\d{1,3}\.\d{1,3}) ")


class Rejection(NamedTuple):
    """A rejected command or message."""

    session: str  # the id of the session
    client: str  # the address, without the port
    command: str
    reply: str
    reason: str  # one of REASONS, BY_HANDLER or UNKNOWN
    sender: str | None  # the sender of the transaction; None: there is none
    recipient: str | None  # the recipient of RCPT, or the first one of the message
    recipients: int  # the number of recipients of the transaction
    helo: str  # the name from the client's HELO or EHLO
    marks: Marks = Marks()  # score and tags
    origin: Origin = Origin()  # the original client, by XFORWARD
    user: str = ""  # the user name in AUTH

    def __str__(self) -> str:
        text = f"rejected {self.command} from {self.client} [{self.session}]: {self.reply};"
        if self.sender is not None:
            text += f" from=<{self.sender}>"
        if self.recipient is not None:
            text += f" to=<{self.recipient}>"
        if self.recipients > 1:
            text += f" recipients={self.recipients}"
        if self.user:
            text += f" user=<{self.user}>"
        return f"{text} helo=<{self.helo}>{self.marks}{self.origin}"

    def facts(self) -> dict[str, str | float]:
        """Return the fields as the log and ``smtpd-fork explain`` name them, without empty ones."""
        fields = {
            "session": self.session,
            "client": self.client,
            "command": self.command,
            "reply": self.reply,
            "reason": self.reason,
            "from": self.sender,
            "recipient": self.recipient,
            "helo": self.helo,
            **self.marks.facts,
            **self.origin.facts,
            "user": self.user,
        }
        return {name: value for name, value in fields.items() if value}


class Rejections:
    """The rejections in the sessions of one server: counts by reason, and the last thousand."""

    __slots__ = ("_last", "counts")

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()  # by reason
        self._last: deque[Rejection] = deque(maxlen=REMEMBERED)

    def add(self, rejection: Rejection) -> None:
        """Count and remember a rejection."""
        self.counts[rejection.reason] += 1
        self._last.append(rejection)

    def by_reason(self) -> dict[str, int]:
        """Return the number of rejections for each reason, with zeros."""
        return {reason: self.counts[reason] for reason in MEANINGS}

    def of_session(self, session: str) -> list[Rejection]:
        """Return the remembered rejections of a session, the oldest first."""
        return [each for each in self._last if each.session == session]


def note_rejection(dialogue: Dialogue, reply: bytes, *, by_handler: bool) -> bytes:
    """Log, count and remember a reply that rejects a command or a message.

    :param reply: the reply, with its CR LF
    :returns: the reply to send. Unless the reason concerns only the protocol, the session id is
        added to replies of this server, for people who ask for the reason
    """
    dialogue.row.replies[reply[0]] += 1
    match = _ENHANCED.match(reply)
    reason = REASONS.get(match[1].decode(), UNKNOWN) if match is not None else UNKNOWN
    if by_handler:
        reason = BY_HANDLER
    elif dialogue.shared.enhanced and reason not in (UNKNOWN, *PROTOCOL) and _has_room(reply):
        reply = reply[:-2] + f" [{dialogue.id}]\r\n".encode()
    rejection = rejection_of(dialogue, reply, reason)
    dialogue.shared.tally.rejections.add(rejection)
    if log.isEnabledFor(logging.INFO):
        dialogue.shared.reporter.note(line_of(dialogue, rejection))
    return reply


def _has_room(reply: bytes) -> bool:
    """Return whether an id can be added; the gate's refusals have one already."""
    return len(reply) <= ROOM_FOR_ID and not reply.endswith(b"]\r\n")


def rejection_of(dialogue: Dialogue, reply: bytes, reason: str) -> Rejection:
    """Return the rejection of the current command, with data of its transaction."""
    envelope = dialogue.transaction
    command, argument = dialogue.row.name, dialogue.line.decode("utf-8", "replace")
    sender, recipients = (None, []) if envelope is None else (envelope.mail_from, envelope.rcpt_tos)
    recipient = recipients[0] if recipients else None
    text = reply.decode("utf-8", "replace")
    if dialogue.row is dialogue.rows[b""]:
        text = _QUOTED.sub("", text)  # an unknown command may be a password
    if command == "MAIL":
        sender = _address(argument)
    elif command == "RCPT":
        recipient = _address(argument)
    return Rejection(
        dialogue.id,
        host_of(peer_of(dialogue)) or "unix",
        command,
        _shown(text.rstrip()) or "",
        reason,
        _shown(sender),
        _shown(recipient),
        len(recipients),
        _shown(getattr(dialogue.session, "host_name", None)) or "",
        marks_of(dialogue.session, envelope),
        Origin.of(getattr(envelope, "xforward", None)),
        _shown(getattr(dialogue.session, "auth_user", "")) or "" if command == "AUTH" else "",
    )


def _address(argument: str) -> str:
    """Return the address of MAIL or RCPT; if it is malformed, the text instead of it."""
    text = argument.partition(":")[2].strip()
    parsed = parse_path(text, strict=False)
    return text if parsed is None else parsed[0]


def _shown(text: str | None) -> str | None:
    return None if text is None else printable(text, LONGEST_SHOWN)


def line_of(dialogue: Dialogue, rejection: Rejection) -> ClientLine:
    """Return the log line; those of the same client, command and reason are summarized."""
    event = f"rejected {rejection.command}"
    return ClientLine(
        ClientLine.key_of(peer_of(dialogue), event, rejection.reason),
        str(rejection),
        log,
        logging.INFO,
        {**rejection.facts(), **dialogue.log_fields()},
    )
