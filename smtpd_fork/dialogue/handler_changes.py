"""HandlerChanges: what handlers may have changed is read off the session and the envelope again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smtpd_fork.dialogue.command_table import Guard
from smtpd_fork.dialogue.commands import State
from smtpd_fork.dialogue.tarpit import slow_down

if TYPE_CHECKING:
    from smtpd_fork.dialogue.dialogue import Dialogue

__all__ = ["place", "set_rows"]

_HELLO, _READY, _CHUNKS = State.HELLO, State.READY, State.CHUNKS
_SENDER, _RECIPIENT = State.SENDER, State.RECIPIENT


def place(dialogue: Dialogue) -> None:
    """Read the state off session and envelope: a handler may have changed them."""
    session = dialogue.session
    envelope = dialogue.envelope if dialogue.shared.own_envelope else dialogue.transaction
    if session is None or dialogue.state > _CHUNKS:
        return
    delay = getattr(session, "tarpit", 0.0)
    if delay != dialogue.tarpit:
        slow_down(dialogue, delay, "a handler says so")
    if not session.host_name:
        dialogue.state = _HELLO
    elif envelope is None or not envelope.mail_from:
        dialogue.state = _READY
    elif dialogue.chunks is not None or dialogue.chunk_fault is not None:
        dialogue.state = _CHUNKS
    else:
        dialogue.state = _RECIPIENT if envelope.rcpt_tos else _SENDER
    if dialogue.shared.guarded:
        set_rows(dialogue)


def set_rows(dialogue: Dialogue) -> None:
    """Choose the rows by what this client still has to do first: TLS, AUTH, or nothing."""
    shared, session = dialogue.shared, dialogue.session
    if shared.require_starttls and not dialogue.tls:
        dialogue.rows = shared.rows[Guard.TLS]
    elif shared.auth_required and not (session and session.authenticated):
        dialogue.rows = shared.rows[Guard.AUTH]
    else:
        dialogue.rows = shared.open_rows
