"""What a filter does with a message that the program behind it wants put aside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from aiosmtpd.smtp import MISSING

from smtpd_fork.message.quarantine_mark import WITHHELD, add_quarantine_field, quarantine

if TYPE_CHECKING:
    from aiosmtpd.smtp import Envelope

__all__ = ["WhenQuarantined", "put_aside"]

WhenQuarantined: TypeAlias = Literal["sink", "defer", "refuse", "mark"]
"""The key ``when-quarantined`` of filters; None is ``sink`` if there is one, else ``defer``."""

_REPLIES = {"defer": WITHHELD, "refuse": "550 5.7.1 The message is withheld"}


def put_aside(envelope: Envelope, reason: str, how: WhenQuarantined | None) -> Any:
    """Return the reply to a message, or MISSING: it goes on, marked or to another sink."""
    if how in _REPLIES:
        return _REPLIES[how]
    (add_quarantine_field if how == "mark" else quarantine)(envelope, reason)
    return MISSING
