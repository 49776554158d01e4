"""Memory: what a session holds for its client, charged to the budget of all sessions.

A message that does not fit is read and forgotten (452); see :mod:`~smtpd_fork.dialogue.budget`.
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
    """Charge all that is held for the client, beyond what each session may hold.

    Past the budget a message that is not complete is no longer held.

    :param message: that has just been completed; default: the one that is to be, if any
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
    """Return about how many bytes are held for the client.

    What has a small bound of its own is not in it: names, one command, the responses of AUTH.
    """
    total = dialogue.envelope_bytes
    if dialogue.framer is not None:
        total += dialogue.framer.held
    content = message or dialogue.reading or dialogue.chunks
    if content is not None:
        total += content.held
    if dialogue.in_hand:
        envelope = dialogue.envelope
        text, original = envelope.content, envelope.original_content
        total += len(original or b"") + (getsizeof(text) if text is not original else 0)
    if dialogue.host is not None:
        total += dialogue.host.unsent()
    return total


def charge_changed(dialogue: Dialogue) -> bool:
    """Charge a message that a handler has changed; return whether it may be held."""
    excess = held(dialogue) - ALLOWANCE - dialogue.charged
    if excess > 0 and not has_budget(dialogue, excess):
        return False
    charge(dialogue)
    return True


def has_room(dialogue: Dialogue, more: int) -> bool:
    """Whether so many bytes more can be held now; of a message some may be here already."""
    if more <= ALLOWANCE and not dialogue.charged:
        return True  # the usual case; more is charged when it comes
    more = max(0, more - dialogue.pending)
    excess = held(dialogue) + more - ALLOWANCE - dialogue.charged
    return excess <= 0 or has_budget(dialogue, excess)


def has_budget(dialogue: Dialogue, more: int) -> bool:
    """Whether the budget allows so many bytes more."""
    host = dialogue.host
    return host is None or dialogue.shared.budget.has_room(host, more)
