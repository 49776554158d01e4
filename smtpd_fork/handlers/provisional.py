"""Provisional answers: those of a filter that depend on what the handlers behind it say.

About client, sender and recipient all handlers behind it are asked. About a message only filters
are that follow it directly: another handler might deliver the message.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from aiosmtpd.smtp import MISSING

from smtpd_fork.filters import Filter
from smtpd_fork.filters.provisional import AnswersProvisionally

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Hook = Callable[..., Awaitable[Any]]

__all__ = ["asked_with_others", "is_of_filter", "provisional_filter"]


def is_of_filter(hook: Hook) -> bool:
    """Whether it is the hook of a filter."""
    return isinstance(_owner(hook), Filter)


def provisional_filter(hook: Hook) -> AnswersProvisionally | None:
    """Return the filter whose hook it is, if its answers may be provisional."""
    owner = _owner(hook)
    return owner if isinstance(owner, AnswersProvisionally) else None


def _owner(hook: Hook) -> Any:
    function: Any = inspect.unwrap(hook)  # a handler with conditions has its hooks wrapped
    return getattr(function, "__self__", None)


def asked_with_others(
    first: Hook, filter_: AnswersProvisionally, behind: Hook, *, of_client: bool
) -> Hook:
    """Return a hook: *first*, of *filter_*, then *behind*.

    :param of_client: CONNECT or HELO; else MAIL or RCPT
    """

    async def hook(server: Any, session: Any, *args: Any) -> Any:
        asked = session if of_client else args[0]
        status = await first(server, session, *args)
        provisional = filter_.take_provisional(asked)
        if provisional is None and status is not MISSING:
            return status
        before = None if of_client else _Before(asked)
        status = await behind(server, session, *args)
        if provisional is None:
            return status
        answer = provisional.answer(status)
        if before is not None and answer is not status:
            before.restore(asked)
        return answer

    return hook


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
