"""ForgedResults: removes forged Authentication-Results from messages of clients.

These are fields with a name of this server. Handlers get messages without them; fields that filters
add remain.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

from smtpd_fork.dialogue.session import is_on_unix_socket
from smtpd_fork.dialogue.waiting import begins_at_once, may_end_at_once
from smtpd_fork.filters.content_filter import in_thread_if_large
from smtpd_fork.gate import ClientLine, client_reporter
from smtpd_fork.message.authentication_results import (
    authserv_key,
    has_results,
    without_results,
)
from smtpd_fork.message.fields import replace_content
from smtpd_fork.message.loops import has_long_header

if TYPE_CHECKING:
    from collections.abc import Callable

    from smtpd_fork.dialogue import Tally

__all__ = ["ForgedResults"]

log = logging.getLogger("smtpd_fork.handlers")

REMOVED = "Authentication-Results removed, which named this server"


class ForgedResults:
    """Removes the fields before the first handler is called.

    The fields of trusted clients remain: those of ``--exempt``, and of unix sockets, which are
    programs of this machine.
    """

    def __init__(self) -> None:
        self._ids: frozenset[str] = frozenset()
        self._reporter = client_reporter()
        self._tally: Tally | None = None

    def name(self, ids: Iterable[str]) -> None:
        """Set the names that this server has besides its own (``--authserv-id``)."""
        self._ids = frozenset(map(authserv_key, ids))

    def count_with(self, tally: Tally) -> None:
        """Count the messages with forged fields in *tally*."""
        self._tally = tally

    def hook(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        """Return a hook DATA that calls *hook* with the message without forged fields."""

        async def clean_first(server: Any, session: Any, envelope: Any) -> Any:
            await self._clean(server, session, envelope)
            return await hook(server, session, envelope)

        @functools.wraps(hook)
        def handle_DATA(server: Any, session: Any, envelope: Any) -> Any:
            content = envelope.original_content or b""
            if has_long_header(content) or has_results(content):
                return clean_first(server, session, envelope)
            return hook(server, session, envelope)

        return may_end_at_once(handle_DATA) if begins_at_once(hook) else handle_DATA

    async def _clean(self, server: Any, session: Any, envelope: Any) -> None:
        if _is_trusted(server, session):
            return
        content = envelope.original_content
        ids = self._ids | {authserv_key(server.hostname)}
        if await in_thread_if_large(len(content), _remove_results, envelope, ids):
            self._report(session)

    def _report(self, session: Any) -> None:
        if self._tally is not None:
            self._tally.forged_results += 1
        of = getattr(session, "id", "")
        self._reporter.note(ClientLine.of(log, logging.INFO, session.peer, REMOVED, session=of))

    def close(self) -> None:
        """Log the summaries of lines."""
        self._reporter.close()


def _remove_results(envelope: Any, ids: Collection[str]) -> bool:
    """Remove forged fields; return whether there were any."""
    content = envelope.original_content
    cleaned = without_results(content, ids)
    if cleaned is content:
        return False
    replace_content(envelope, cleaned)
    return True


def _is_trusted(server: Any, session: Any) -> bool:
    return is_on_unix_socket(session) or bool(getattr(server, "exempt", False))
