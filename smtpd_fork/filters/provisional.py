"""Provisional: an answer of a filter that depends on the answers of later handlers."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

from aiosmtpd.smtp import MISSING, Envelope, Session

__all__ = ["AnswersProvisionally", "Asked", "Provisional"]

Asked: TypeAlias = Session | Envelope
"""The subject of a filter's answer: the session before MAIL, the envelope from MAIL on."""


class Provisional(NamedTuple):
    """An answer of a filter that depends on the answers of later handlers.

    :ivar if_permitted: the 4yz reply to send unless a handler refuses permanently (Postfix's
        DEFER_IF_PERMIT), or an empty string
    :ivar if_refused: the 4yz reply to send instead of a permanent refusal (DEFER_IF_REJECT), or an
        empty string
    """

    if_permitted: str = ""
    if_refused: str = ""

    def answer(self, status: Any) -> Any:
        """Return the final answer to the client.

        :param status: the answer of the later handlers; MISSING if none of them has answered
        """
        if status is not MISSING and status[:1] in {"5", b"5"}:
            return self.if_refused or status
        return self.if_permitted or status

    def joined(self, later: Provisional) -> Provisional:
        """Return this answer, with each empty reply taken from a later answer."""
        return Provisional(
            self.if_permitted or later.if_permitted, self.if_refused or later.if_refused
        )


@runtime_checkable
class AnswersProvisionally(Protocol):
    """A filter with provisional answers."""

    def take_provisional(self, asked: Asked) -> Provisional | None:
        """Return and remove the provisional answer of the last hook for *asked*."""
