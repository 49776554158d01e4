"""Provisional answers: answers of a filter that depend on those of the next handlers.

For client, sender and recipient, all next handlers are called. For a message, only the filters that
follow directly are called: another handler might deliver the message.
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

__all__ = ["is_of_filter", "provisional_filter", "with_later_handlers"]


def is_of_filter(hook: Hook) -> bool:
    """Return whether it is the hook of a filter."""
    return isinstance(_owner(hook), Filter)


def provisional_filter(hook: Hook) -> AnswersProvisionally | None:
    """Return the filter to which the hook belongs, if its answers may be provisional."""
    owner = _owner(hook)
    return owner if isinstance(owner, AnswersProvisionally) else None


def _owner(hook: Hook) -> Any:
    function: Any = inspect.unwrap(hook)  # the hooks of a handler with conditions are wrapped
    return getattr(function, "__self__", None)


def with_later_handlers(
    first: Hook, filter_: AnswersProvisionally, later: Hook, *, of_client: bool
) -> Hook:
    """Return a hook that calls *first*, of *filter_*, and then *later*.

    :param of_client: for CONNECT or HELO; otherwise for MAIL or RCPT
    """

    async def hook(server: Any, session: Any, *args: Any) -> Any:
        asked = session if of_client else args[0]
        status = await first(server, session, *args)
        provisional = filter_.take_provisional(asked)
        if provisional is None and status is not MISSING:
            return status
        before = None if of_client else _Before(asked)
        status = await later(server, session, *args)
        if provisional is None:
            return status
        answer = provisional.answer(status)
        if before is not None and answer is not status:
            before.restore(asked)
        return answer

    return hook


class _Before:
    """Sender and recipients before the handlers were called, which may have changed them."""

    def __init__(self, envelope: Any) -> None:
        self._sender = envelope.mail_from
        self._lists = [(each, len(each)) for each in _lists(envelope)]

    def restore(self, envelope: Any) -> None:
        envelope.mail_from = self._sender
        for each, length in self._lists:
            del each[length:]


def _lists(envelope: Any) -> list[list[Any]]:
    return [envelope.mail_options, envelope.rcpt_tos, envelope.rcpt_options]
