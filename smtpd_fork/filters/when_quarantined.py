"""The key ``when-quarantined``: what happens to a message that a filter quarantines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from aiosmtpd.smtp import MISSING

from smtpd_fork.message.quarantine_mark import WITHHELD, add_quarantine_field, quarantine

if TYPE_CHECKING:
    from aiosmtpd.smtp import Envelope

__all__ = ["WhenQuarantined", "quarantine_by"]

WhenQuarantined: TypeAlias = Literal["sink", "defer", "refuse", "mark"]
"""Values of the key; the default (None) is ``sink`` if there is such a sink, else ``defer``."""

_REPLIES = {"defer": WITHHELD, "refuse": "550 5.7.1 The message is withheld"}


def quarantine_by(envelope: Envelope, reason: str, how: WhenQuarantined | None) -> Any:
    """Quarantine a message as the setting says.

    :returns: the reply to a message that is withheld; MISSING for a message that is passed on, with
        a header field or to a sink with ``quarantine = true``
    """
    if how in _REPLIES:
        return _REPLIES[how]
    (add_quarantine_field if how == "mark" else quarantine)(envelope, reason)
    return MISSING
