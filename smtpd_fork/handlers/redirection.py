"""Redirection: calls handlers with the new addresses of a recipient that a handler has replaced.

As in aiosmtpd, a handler that replaces a recipient appends the new addresses to
``envelope.rcpt_tos`` and returns 2yz. The next handlers must be called nevertheless, with the new
addresses: a mailbox server knows these, but may not know the alias.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from aiosmtpd.smtp import MISSING

from smtpd_fork.dialogue.waiting import begins_at_once, may_end_at_once

__all__ = ["for_each_address", "redirects"]

Hook: TypeAlias = Callable[..., Awaitable[Any]]


def redirects(hook: Hook) -> bool:
    """Return whether a hook, or its handler, declares that it redirects recipients."""
    function: Any = inspect.unwrap(hook)  # the hooks of a handler with conditions are wrapped
    return bool(getattr(getattr(function, "__self__", function), "redirects", False))


def for_each_address(redirecting: Hook, later: Hook) -> Hook:
    """Return a hook RCPT that calls *redirecting*, and then *later* with each resulting address.

    If *later* rejects one of the addresses, the recipient is rejected: otherwise messages to the
    recipient would never reach that address.
    """

    async def handle_RCPT(
        server: Any, session: Any, envelope: Any, address: str, options: list[str]
    ) -> Any:
        known = len(envelope.rcpt_tos)
        status = await redirecting(server, session, envelope, address, options)
        if status is MISSING:
            return await later(server, session, envelope, address, options)
        if not isinstance(status, str) or status[:1] != "2":
            return status
        addresses = envelope.rcpt_tos[known:]
        del envelope.rcpt_tos[known:]
        for each in addresses:
            answer = await later(server, session, envelope, each, options)
            if answer is MISSING:
                envelope.rcpt_tos.append(each)
            elif answer[:1] not in {"2", b"2"}:
                del envelope.rcpt_tos[known:]
                return answer
        return status

    both = begins_at_once(redirecting) and begins_at_once(later)
    return may_end_at_once(handle_RCPT) if both else handle_RCPT
