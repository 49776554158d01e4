"""PolicyEffects: what actions of a policy server do besides refusing."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from aiosmtpd.smtp import Envelope
from aiosmtpd.smtp import Session as AnySession

from smtpd_fork.dialogue.path import parse_path
from smtpd_fork.filters.milter_changes import change_envelope
from smtpd_fork.filters.policy_action import DEFERRING
from smtpd_fork.gate import ClientLine
from smtpd_fork.hops.milter.verdict import Edit
from smtpd_fork.message.fields import prepend_all
from smtpd_fork.sanitizer import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from smtpd_fork.filters.policy_action import Action
    from smtpd_fork.gate import Reporter

__all__ = ["PolicyEffects", "Said"]

log = logging.getLogger("smtpd_fork.policy")

MOST_FIELDS = 100
"""Fields that a server may add to one message; each recipient may bring one."""

_FIELD = re.compile(r"([!-9;-~]{1,255}):[ ]*(.*)")


@dataclass(slots=True)
class Said:
    """What actions have said of a message that has not come yet.

    :ivar discarded: why it is not to be delivered; None: it is
    :ivar held: why it is to be put aside; None: it is not
    """

    fields: list[tuple[str, str]] = field(default_factory=list)
    copies: list[str] = field(default_factory=list)
    redirected: str = ""
    discarded: str | None = None
    held: str | None = None

    def change(self, envelope: Envelope) -> None:
        """Change the message, and its recipients."""
        if self.fields:
            prepend_all(envelope, self.fields)
        change_envelope(envelope, _edits(envelope, self))


class PolicyEffects:
    """What the actions of one server do.

    :param server: for the log
    :param reporter: writes lines about clients
    """

    def __init__(self, server: str, reporter: Reporter) -> None:
        self._server = server
        self._reporter = reporter
        self._messages: WeakKeyDictionary[Envelope, Said] = WeakKeyDictionary()
        self._unknown: set[str] = set()

    def note(
        self, action: Action, session: AnySession, envelope: Envelope | None, state: str
    ) -> None:
        """Take note of an action; one that is not possible here counts as DUNNO."""
        if envelope is not None and state == "MAIL":
            self._messages.pop(envelope, None)  # an earlier MAIL was refused, perhaps
        if action.name in {"OK", "REJECT", *DEFERRING}:
            return
        if action.name in {"WARN", "INFO"}:
            level = logging.WARNING if action.name == "WARN" else logging.INFO
            self._tell(level, session, f"{state} {action.name.lower()}", action.text)
            return
        if action.name == "SLEEP" and action.text.isdecimal():
            session.tarpit = float(action.text[:9])  # type: ignore[attr-defined] # of ours
            return
        take = self._takers.get(action.name)
        if take is None or envelope is None or state in {"EHLO", "HELO"}:
            self._cannot(action.name, state)
        elif not take(self, self._messages.setdefault(envelope, Said()), action):
            self._tell(logging.WARNING, session, f"{action.name} is not possible", action.text)

    def _cannot(self, name: str, state: str) -> None:
        """Say once that an action has no effect."""
        if name not in self._unknown and len(self._unknown) < MOST_FIELDS:
            self._unknown.add(name)
            text = "%s: the action %s is not supported at %s, and taken as DUNNO"
            log.warning(text, self._server, printable(name, 40), state)

    def of(self, envelope: Envelope) -> Said | None:
        """Return what was said of a message that has come, once."""
        return self._messages.pop(envelope, None)

    # -- what each of them says of a message; whether that is possible -----------------------------

    def _prepend(self, message: Said, action: Action) -> bool:
        match = _FIELD.fullmatch(action.text)
        if match is None or len(message.fields) >= MOST_FIELDS:
            return False
        name, value = match.groups()
        new = name, printable(value, None)
        # The server knows the recipients of one message by its instance, and answers the others
        # with DUNNO; several processes of it, each with a connection, do not know of each other.
        if new not in message.fields:
            message.fields.append(new)
        return True

    def _discard(self, message: Said, action: Action) -> bool:
        message.discarded = action.text
        return True

    def _hold(self, message: Said, action: Action) -> bool:
        message.held = action.text
        return True

    def _redirect(self, message: Said, action: Action) -> bool:
        message.redirected = _address(action.text)
        return bool(message.redirected)

    def _copy(self, message: Said, action: Action) -> bool:
        address = _address(action.text)
        if address and address not in message.copies and len(message.copies) < MOST_FIELDS:
            message.copies.append(address)
        return bool(address)

    _takers: Mapping[str, Callable[[Any, Said, Action], bool]] = {
        "BCC": _copy,
        "DISCARD": _discard,
        "HOLD": _hold,
        "PREPEND": _prepend,
        "REDIRECT": _redirect,
    }

    def _tell(self, level: int, session: AnySession, what: str, why: str) -> None:
        line = ClientLine.of(
            log, level, session.peer, f"{self._server}: {what}",
            printable(why), session=getattr(session, "id", ""),
        )  # fmt: skip
        self._reporter.note(line)


def _address(text: str) -> str:
    """Return an address, without angle brackets; empty: it is none that a client could send."""
    parsed = parse_path(text if text.startswith("<") else f"<{text}>", strict=True)
    return "" if parsed is None or parsed[1] or parsed[0] == "<>" else parsed[0]


def _edits(envelope: Envelope, message: Said) -> list[Edit]:
    """Return the changes of the recipients."""
    edits = []
    if message.redirected:
        edits = [Edit(b"-", address=each) for each in envelope.rcpt_tos]
        edits.append(Edit(b"+", address=message.redirected))
    return edits + [Edit(b"+", address=each) for each in message.copies]
