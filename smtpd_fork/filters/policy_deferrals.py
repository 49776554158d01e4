"""Deferrals: the actions DEFER_IF_PERMIT and DEFER_IF_REJECT of a policy server.

As in Postfix, DEFER_IF_PERMIT for a client or a sender does not refuse it immediately. Instead each
recipient is deferred, unless it is refused permanently for another reason; the reply is that of the
first such action. The action at the end of a message applies to the message.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from aiosmtpd.smtp import Envelope
from aiosmtpd.smtp import Session as AnySession

from smtpd_fork.dialogue.notes import note_of, notes_of
from smtpd_fork.filters.provisional import Provisional

if TYPE_CHECKING:
    from smtpd_fork.filters.policy_action import Action
    from smtpd_fork.filters.provisional import Asked

__all__ = ["Deferrals"]

_OF_CLIENT = {"CONNECT": "CONNECT", "EHLO": "HELO", "HELO": "HELO"}
"""Protocol states before MAIL, with the key of their answers: a later one replaces an earlier."""


class Deferrals:
    """The deferrals of one server.

    Deferrals of a client are stored as a note of its session, because they outlast STARTTLS; others
    end with the transaction.

    :param name: the name of the note
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._of_sender: WeakKeyDictionary[Envelope, str] = WeakKeyDictionary()
        self._provisional: WeakKeyDictionary[Asked, Provisional] = WeakKeyDictionary()

    def forget(self, session: AnySession, envelope: Envelope | None, state: str) -> None:
        """Remove the answer to an earlier request of the same kind."""
        if state in _OF_CLIENT:
            self._of_client(session).pop(_OF_CLIENT[state], None)
            self._provisional.pop(session, None)
            return
        assert envelope is not None
        if state == "MAIL":
            self._of_sender.pop(envelope, None)
        if state != "END-OF-MESSAGE":  # keep the answer at DATA: both are about the message
            self._provisional.pop(envelope, None)

    def note(
        self, action: Action, session: AnySession, envelope: Envelope | None, state: str
    ) -> None:
        """Store a deferral."""
        asked = session if envelope is None or state in _OF_CLIENT else envelope
        if action.name == "DEFER_IF_REJECT":
            self._add(asked, Provisional(if_refused=action.reply))
        elif state in _OF_CLIENT:
            notes = notes_of(session).setdefault(self._name, {})
            notes[_OF_CLIENT[state]] = action.reply
        elif state == "MAIL" and envelope is not None:
            self._of_sender[envelope] = action.reply
        else:
            self._add(asked, Provisional(action.reply))

    def of_recipient(self, session: AnySession, envelope: Envelope) -> str:
        """Return the 4yz reply to a recipient that no one else refuses, or an empty string."""
        earlier = [*self._of_client(session).values(), self._of_sender.get(envelope, "")]
        if first := next(filter(None, earlier), ""):
            known = self._provisional.get(envelope, Provisional())
            self._provisional[envelope] = known._replace(if_permitted=first)
        return self.of_message(envelope)

    def of_message(self, envelope: Envelope) -> str:
        """Return the 4yz reply to a message that no handler refuses, or an empty string."""
        return self._provisional.get(envelope, Provisional()).if_permitted

    def take(self, asked: Asked) -> Provisional | None:
        """Return and remove the provisional answer for *asked*."""
        return self._provisional.pop(asked, None)

    def _add(self, asked: Asked, provisional: Provisional) -> None:
        before = self._provisional.get(asked, Provisional())
        self._provisional[asked] = before.joined(provisional)

    def _of_client(self, session: AnySession) -> dict[str, str]:
        found: dict[str, str] | None = note_of(session, self._name)
        return {} if found is None else found
