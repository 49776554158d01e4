"""Quarantine: filters mark a message, and only sinks with ``quarantine = true`` store it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smtpd_fork.message.fields import prepend
from smtpd_fork.sanitizer import printable

if TYPE_CHECKING:
    from aiosmtpd.smtp import Envelope

__all__ = ["WITHHELD", "add_quarantine_field", "is_quarantined", "quarantine"]

WITHHELD = "451 4.7.1 The message is withheld, try again later"
"""The reply if no sink stores quarantined messages."""

LONGEST_REASON = 200
"""Characters."""


def quarantine(envelope: Envelope, reason: str) -> None:
    """Quarantine a message: only sinks with ``quarantine = true`` store it.

    Filters call it in ``handle_DATA`` and then return MISSING. The message gets a field
    ``X-Quarantine`` with the reason at its top. If no sink of the chain has ``quarantine = true``,
    the client gets 451.

    :param reason: the reason; only the first 200 characters are used
    """
    text = add_quarantine_field(envelope, reason)
    envelope.quarantine = getattr(envelope, "quarantine", "") or text  # type: ignore[attr-defined]


def add_quarantine_field(envelope: Envelope, reason: str) -> str:
    """Add the field ``X-Quarantine`` without marking the message; return the field's value."""
    text = printable(reason, LONGEST_REASON) or "yes"
    prepend(envelope, "X-Quarantine", text)
    return text


def is_quarantined(envelope: Envelope) -> bool:
    """Return whether a filter has quarantined the message."""
    return bool(getattr(envelope, "quarantine", ""))
