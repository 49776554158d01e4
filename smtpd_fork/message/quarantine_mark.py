"""Quarantine: a message that a filter has put aside, for a sink with ``quarantine = true``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smtpd_fork.message.fields import prepend
from smtpd_fork.sanitizer import printable

if TYPE_CHECKING:
    from aiosmtpd.smtp import Envelope

__all__ = ["WITHHELD", "add_quarantine_field", "is_quarantined", "quarantine"]

WITHHELD = "451 4.7.1 The message is withheld, try again later"
"""The reply if no sink takes such a message."""

LONGEST_REASON = 200
"""Characters."""


def quarantine(envelope: Envelope, reason: str) -> None:
    """Put a message aside: the sinks with ``quarantine = true`` take it, and no others do.

    For filters, in ``handle_DATA``, which then return MISSING. The message gets a field
    ``X-Quarantine`` with the reason on top. In a chain without such a sink the client gets 451.

    :param reason: at most 200 characters of it are kept
    """
    text = add_quarantine_field(envelope, reason)
    envelope.quarantine = getattr(envelope, "quarantine", "") or text  # type: ignore[attr-defined] # of ours


def add_quarantine_field(envelope: Envelope, reason: str) -> str:
    """Add the field ``X-Quarantine``, and nothing more; return its value."""
    text = printable(reason, LONGEST_REASON) or "yes"
    prepend(envelope, "X-Quarantine", text)
    return text


def is_quarantined(envelope: Envelope) -> bool:
    """Whether a filter has put the message aside."""
    return bool(getattr(envelope, "quarantine", ""))
