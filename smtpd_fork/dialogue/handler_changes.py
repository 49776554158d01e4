"""HandlerChanges: derives the state from the session and the envelope that handlers may change."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smtpd_fork.dialogue.command_table import Guard
from smtpd_fork.dialogue.commands import State
from smtpd_fork.dialogue.tarpit import slow_down

if TYPE_CHECKING:
    from smtpd_fork.dialogue.dialogue import Dialogue

__all__ = ["set_rows", "update_state"]

_HELLO, _READY, _CHUNKS = State.HELLO, State.READY, State.CHUNKS
_SENDER, _RECIPIENT = State.SENDER, State.RECIPIENT


def update_state(dialogue: Dialogue) -> None:
    """Derive the state from the session and the envelope, which a handler may have changed."""
    session = dialogue.session
    envelope = dialogue.envelope if dialogue.shared.overrides_envelope else dialogue.transaction
    if session is None or dialogue.state > _CHUNKS:
        return
    delay = getattr(session, "tarpit", 0.0)
    if delay != dialogue.tarpit:
        slow_down(dialogue, delay, "set by a handler")
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
    """Select the table of commands by what this client needs first: TLS, AUTH, or nothing."""
    shared, session = dialogue.shared, dialogue.session
    if shared.require_starttls and not dialogue.tls:
        dialogue.rows = shared.rows[Guard.TLS]
    elif shared.auth_required and not (session and session.authenticated):
        dialogue.rows = shared.rows[Guard.AUTH]
    else:
        dialogue.rows = shared.open_rows
