"""Deferrals: what a policy server answers with DEFER_IF_PERMIT and DEFER_IF_REJECT.

As in Postfix: a client or a sender that is deferred "if permitted" is not refused at once, but each
recipient is, unless something else refuses it for good; the reason is that of the first such
answer. The end of a message has an answer of its own.
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
"""States before MAIL, and what a later question takes the place of."""


class Deferrals:
    """The deferrals of one server.

    Those of a client are a note of its session, which TLS does not end; the others end with the
    transaction.

    :param name: of that note
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._of_sender: WeakKeyDictionary[Envelope, str] = WeakKeyDictionary()
        self._provisional: WeakKeyDictionary[Asked, Provisional] = WeakKeyDictionary()

    def forget(self, session: AnySession, envelope: Envelope | None, state: str) -> None:
        """Forget the answer to an earlier question like the one that is asked now."""
        if state in _OF_CLIENT:
            self._of_client(session).pop(_OF_CLIENT[state], None)
            self._provisional.pop(session, None)
            return
        assert envelope is not None
        if state == "MAIL":
            self._of_sender.pop(envelope, None)
        if state != "END-OF-MESSAGE":  # which is one question, with DATA
            self._provisional.pop(envelope, None)

    def note(
        self, action: Action, session: AnySession, envelope: Envelope | None, state: str
    ) -> None:
        """Take note of a deferral."""
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
        """Return the reply to a recipient that nothing else refuses for good; empty: none."""
        earlier = [*self._of_client(session).values(), self._of_sender.get(envelope, "")]
        if first := next(filter(None, earlier), ""):
            said = self._provisional.get(envelope, Provisional())
            self._provisional[envelope] = said._replace(if_permitted=first)
        return self.of_message(envelope)

    def of_message(self, envelope: Envelope) -> str:
        """Return the reply to a message that nothing else refuses for good; empty: none."""
        return self._provisional.get(envelope, Provisional()).if_permitted

    def take(self, asked: Asked) -> Provisional | None:
        """Return the provisional answer to what was asked last, once."""
        return self._provisional.pop(asked, None)

    def _add(self, asked: Asked, provisional: Provisional) -> None:
        before = self._provisional.get(asked, Provisional())
        self._provisional[asked] = before.joined(provisional)

    def _of_client(self, session: AnySession) -> dict[str, str]:
        found: dict[str, str] | None = note_of(session, self._name)
        return {} if found is None else found
