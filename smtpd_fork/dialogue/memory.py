"""Memory: counts the memory of a session, and charges it to the budget of all sessions.

A message that exceeds the budget is read and dropped (452); see :mod:`~smtpd_fork.dialogue.budget`.
"""

from __future__ import annotations

import logging
from sys import getsizeof
from typing import TYPE_CHECKING

from smtpd_fork.dialogue.budget import ALLOWANCE

if TYPE_CHECKING:
    from smtpd_fork.dialogue.content import Content
    from smtpd_fork.dialogue.dialogue import Dialogue
    from smtpd_fork.dialogue.framer import Chunk

__all__ = ["ALLOWANCE", "charge", "charge_changed", "has_room"]


def charge(dialogue: Dialogue, message: Content | Chunk | None = None) -> None:
    """Charge the memory of the session above the allowance of each session.

    If the budget is exceeded, the content of a message that is not complete is dropped.

    :param message: a message that has just been completed; default: the one in progress, if any
    """
    excess = held(dialogue, message) - ALLOWANCE
    if excess <= 0 and not dialogue.charged:
        return  # the usual case
    dialogue.charged = max(excess, 0)
    if dialogue.host is None or dialogue.shared.budget.hold(dialogue.host, dialogue.charged):
        return
    content = message or dialogue.reading or dialogue.chunks
    if content is not None and content.held:
        dialogue.report(logging.INFO, "no memory for the message")
        content.drop()
        charge(dialogue, message)


def held(dialogue: Dialogue, message: Content | Chunk | None = None) -> int:
    """Return the approximate memory of the session, in bytes.

    Data with a small limit of its own is not counted: names, a command, responses of AUTH.
    """
    total = dialogue.envelope_bytes
    if dialogue.framer is not None:
        total += dialogue.framer.held
    content = message or dialogue.reading or dialogue.chunks
    if content is not None:
        total += content.held
    if dialogue.handler_busy:
        envelope = dialogue.envelope
        text, original = envelope.content, envelope.original_content
        total += len(original or b"") + (getsizeof(text) if text is not original else 0)
    if dialogue.host is not None:
        total += dialogue.host.unsent()
    return total


def charge_changed(dialogue: Dialogue) -> bool:
    """Charge a message that a handler has changed; return whether the budget allows it."""
    excess = held(dialogue) - ALLOWANCE - dialogue.charged
    if excess > 0 and not has_budget(dialogue, excess):
        return False
    charge(dialogue)
    return True


def has_room(dialogue: Dialogue, more: int) -> bool:
    """Return whether the budget allows *more* bytes; some of them may be in the input already."""
    if more <= ALLOWANCE and not dialogue.charged:
        return True  # the usual case; it is charged later if it grows
    more = max(0, more - dialogue.pending)
    excess = held(dialogue) + more - ALLOWANCE - dialogue.charged
    return excess <= 0 or has_budget(dialogue, excess)


def has_budget(dialogue: Dialogue, more: int) -> bool:
    """Return whether the budget allows *more* bytes."""
    host = dialogue.host
    return host is None or dialogue.shared.budget.has_room(host, more)
