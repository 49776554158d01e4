"""Provisional answers: those of a filter that depend on what the handlers behind it say.

Sender and recipient are such questions. At the end of a message there are none: a handler behind
might deliver the message.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from aiosmtpd.smtp import MISSING

from smtpd_fork.filters.provisional import AnswersProvisionally

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Hook = Callable[..., Awaitable[Any]]

__all__ = ["asked_with_others", "provisional_filter"]


def provisional_filter(hook: Hook) -> AnswersProvisionally | None:
    """Return the filter whose hook it is, if its answers may be provisional."""
    function: Any = inspect.unwrap(hook)  # a handler with conditions has its hooks wrapped
    owner = getattr(function, "__self__", None)
    return owner if isinstance(owner, AnswersProvisionally) else None


def asked_with_others(first: Hook, filter_: AnswersProvisionally, behind: Hook) -> Hook:
    """Return a hook MAIL or RCPT: *first*, of *filter_*, then *behind*."""

    async def hook(server: Any, session: Any, envelope: Any, *args: Any) -> Any:
        status = await first(server, session, envelope, *args)
        provisional = filter_.take_provisional(envelope)
        if provisional is None and status is not MISSING:
            return status
        before = _Before(envelope)
        status = await behind(server, session, envelope, *args)
        if provisional is None:
            return status
        if provisional.if_refused:
            return provisional.reply if _refuses(status) else status
        before.restore(envelope)
        return status if _refuses(status) else provisional.reply

    return hook


def _refuses(status: Any) -> bool:
    """Whether an answer is 5yz."""
    return status is not MISSING and status[:1] in {"5", b"5"}


class _Before:
    """Sender and recipients before handlers were asked, which may have set them themselves."""

    def __init__(self, envelope: Any) -> None:
        self._sender = envelope.mail_from
        self._lists = [(each, len(each)) for each in _lists(envelope)]

    def restore(self, envelope: Any) -> None:
        envelope.mail_from = self._sender
        for each, length in self._lists:
            del each[length:]


def _lists(envelope: Any) -> list[list[Any]]:
    return [envelope.mail_options, envelope.rcpt_tos, envelope.rcpt_options]
