"""Provisional: an answer of a filter that depends on what the handlers behind it say."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

from aiosmtpd.smtp import MISSING, Envelope, Session

__all__ = ["AnswersProvisionally", "Asked", "Provisional"]

Asked: TypeAlias = Session | Envelope
"""What a filter is asked about: before MAIL the session, from then on the envelope."""


class Provisional(NamedTuple):
    """An answer of a filter that depends on what the handlers behind it say.

    :ivar if_permitted: 4yz, which stands unless one of them refuses permanently (Postfix's
        DEFER_IF_PERMIT); empty: there is none
    :ivar if_refused: 4yz, which takes the place of such a refusal (DEFER_IF_REJECT); so too
    """

    if_permitted: str = ""
    if_refused: str = ""

    def answer(self, status: Any) -> Any:
        """Return what the client gets.

        :param status: of the handlers behind; MISSING: they have no opinion
        """
        if status is not MISSING and status[:1] in {"5", b"5"}:
            return self.if_refused or status
        return self.if_permitted or status

    def joined(self, later: Provisional) -> Provisional:
        """Return this answer, and what a later one has beside it."""
        return Provisional(
            self.if_permitted or later.if_permitted, self.if_refused or later.if_refused
        )


@runtime_checkable
class AnswersProvisionally(Protocol):
    """A filter some of whose answers are provisional."""

    def take_provisional(self, asked: Asked) -> Provisional | None:
        """Return the provisional answer to what the filter was asked about last, once."""
