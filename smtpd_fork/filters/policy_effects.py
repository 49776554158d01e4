"""PolicyEffects: the actions of a policy server that do not refuse."""

from __future__ import annotations

import logging
import re
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from aiosmtpd.smtp import Envelope
from aiosmtpd.smtp import Session as AnySession

from smtpd_fork.filters.milter_changes import change_envelope
from smtpd_fork.filters.policy_action import DEFERRING
from smtpd_fork.gate import ClientLine
from smtpd_fork.hops.milter.codec import MilterGarbageError
from smtpd_fork.hops.milter.verdict import Edit, edit_of_address
from smtpd_fork.message.fields import prepend_all
from smtpd_fork.sanitizer import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from smtpd_fork.filters.policy_action import Action
    from smtpd_fork.gate import Reporter

__all__ = ["MessageEffects", "PolicyEffects"]

log = logging.getLogger("smtpd_fork.policy")

MOST_FIELDS = 100
"""Maximum header fields that a server may add to one message; it may add one per recipient."""

_FIELD = re.compile(r"([!-9;-~]{1,255}):[ ]*(.*)")


@dataclass(slots=True)
class MessageEffects:
    """The actions for a message, which are applied after it was received.

    :ivar fields: header fields to prepend
    :ivar copies: recipients to add
    :ivar redirected: the recipient that replaces all others, or an empty string
    :ivar discarded: the reason to discard the message; None: it is delivered
    :ivar held: the reason to quarantine the message; None: it is not quarantined
    """

    fields: list[tuple[str, str]] = field(default_factory=list)
    copies: list[str] = field(default_factory=list)
    redirected: str = ""
    discarded: str | None = None
    held: str | None = None

    def apply(self, envelope: Envelope) -> None:
        """Change the message and its recipients."""
        if self.fields:
            prepend_all(envelope, self.fields)
        change_envelope(envelope, _edits(envelope, self))


class PolicyEffects:
    """Stores the actions of one server until their messages are received.

    :param server: the name of the server for the log
    :param reporter: writes log lines about clients
    """

    def __init__(self, server: str, reporter: Reporter) -> None:
        self._server = server
        self._reporter = reporter
        self._messages: WeakKeyDictionary[Envelope, MessageEffects] = WeakKeyDictionary()
        self._unknown: set[str] = set()

    def note(
        self, action: Action, session: AnySession, envelope: Envelope | None, state: str
    ) -> None:
        """Store or carry out an action; an action that is not possible here counts as DUNNO."""
        if envelope is not None and state == "MAIL":
            self._messages.pop(envelope, None)  # of an earlier MAIL that was refused
        if action.name in {"OK", "REJECT", *DEFERRING}:
            return
        if action.name in {"WARN", "INFO"}:
            level = logging.WARNING if action.name == "WARN" else logging.INFO
            self._log(level, session, f"{state} {action.name.lower()}", action.text)
            return
        if action.name == "SLEEP" and action.text.isdecimal():
            session.tarpit = float(action.text[:9])  # type: ignore[attr-defined] # of ours
            return
        store = self._actions.get(action.name)
        if store is None or envelope is None or state in {"EHLO", "HELO"}:
            self._warn_unsupported(action.name, state)
        elif not store(self, self._messages.setdefault(envelope, MessageEffects()), action):
            self._log(logging.WARNING, session, f"{action.name} is not possible", action.text)

    def _warn_unsupported(self, name: str, state: str) -> None:
        """Log once for each name that an action has no effect."""
        if name not in self._unknown and len(self._unknown) < MOST_FIELDS:
            self._unknown.add(name)
            text = "%s: the action %s is not supported at %s, and treated as DUNNO"
            log.warning(text, self._server, printable(name, 40), state)

    def take(self, envelope: Envelope) -> MessageEffects | None:
        """Return and remove the actions for a message; None if there are none."""
        return self._messages.pop(envelope, None)

    # -- one method for each action; it returns False if the action is not valid -------------------

    def _prepend(self, message: MessageEffects, action: Action) -> bool:
        match = _FIELD.fullmatch(action.text)
        if match is None or len(message.fields) >= MOST_FIELDS:
            return False
        name, value = match.groups()
        new = name, printable(value, None)
        # A server adds a field once per message, which it recognizes by the attribute `instance`,
        # but the processes of one server, each with a connection, do so independently.
        if new not in message.fields:
            message.fields.append(new)
        return True

    def _discard(self, message: MessageEffects, action: Action) -> bool:
        message.discarded = action.text
        return True

    def _hold(self, message: MessageEffects, action: Action) -> bool:
        message.held = action.text
        return True

    def _redirect(self, message: MessageEffects, action: Action) -> bool:
        message.redirected = _address(action.text)
        return bool(message.redirected)

    def _copy(self, message: MessageEffects, action: Action) -> bool:
        address = _address(action.text)
        if address and address not in message.copies and len(message.copies) < MOST_FIELDS:
            message.copies.append(address)
        return bool(address)

    _actions: Mapping[str, Callable[[Any, MessageEffects, Action], bool]] = {
        "BCC": _copy,
        "DISCARD": _discard,
        "HOLD": _hold,
        "PREPEND": _prepend,
        "REDIRECT": _redirect,
    }

    def _log(self, level: int, session: AnySession, what: str, why: str) -> None:
        line = ClientLine.of(
            log, level, session.peer, f"{self._server}: {what}",
            printable(why), session=getattr(session, "id", ""),
        )  # fmt: skip
        self._reporter.note(line)


def _address(text: str) -> str:
    """Return an address without angle brackets; empty if it would not be valid in RCPT."""
    with suppress(MilterGarbageError):
        return edit_of_address(b"+", text.encode("utf-8", "replace")).address
    return ""


def _edits(envelope: Envelope, message: MessageEffects) -> list[Edit]:
    """Return the changes to the recipients."""
    edits = []
    if message.redirected:
        edits = [Edit(b"-", address=each) for each in envelope.rcpt_tos]
        edits.append(Edit(b"+", address=message.redirected))
    return edits + [Edit(b"+", address=each) for each in message.copies]
