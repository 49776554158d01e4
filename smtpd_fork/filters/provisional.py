"""Provisional: an answer of a filter that depends on what the handlers behind it say."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from aiosmtpd.smtp import Envelope

__all__ = ["AnswersProvisionally", "Provisional"]


class Provisional(NamedTuple):
    """An answer to MAIL or RCPT that depends on what the handlers behind a filter say.

    :ivar reply: 4yz
    :ivar if_refused: False: it stands unless one of them refuses permanently (Postfix's
        DEFER_IF_PERMIT); True: it takes the place of such a refusal (DEFER_IF_REJECT)
    """

    reply: str
    if_refused: bool = False


@runtime_checkable
class AnswersProvisionally(Protocol):
    """A filter some of whose answers are provisional."""

    def take_provisional(self, envelope: Envelope) -> Provisional | None:
        """Return the provisional answer to the MAIL or RCPT that was asked about last, once."""
