"""ContentFilter: the base class of filters that have an external program check messages."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, TypeVar

from aiosmtpd.smtp import MISSING, Envelope
from aiosmtpd.smtp import Session as AnySession

from smtpd_fork.filters.base import Filter
from smtpd_fork.filters.milter_changes import change_envelope
from smtpd_fork.filters.when_quarantined import WhenQuarantined, quarantine_by
from smtpd_fork.gate import ClientLine, client_reporter
from smtpd_fork.hops.peer_status import Outage
from smtpd_fork.message import Mail
from smtpd_fork.message.fields import replace_content
from smtpd_fork.message.mail import new_queue_id
from smtpd_fork.sanitizer import printable

if TYPE_CHECKING:
    from smtpd_fork.hops.milter.edited import Parts
    from smtpd_fork.hops.milter.verdict import Edit

__all__ = ["CHANGES_BESIDES", "HEADER_TOO_LARGE", "ContentFilter", "WhenDown", "in_thread_if_large"]

DISCARDED = "250 2.0.0 Ok: discarded"
HEADER_TOO_LARGE = "552 5.3.4 The header of the message is too large"
TOO_LARGE = "552 5.3.4 The message is too large with the changes of a filter"

Result = TypeVar("Result")

WhenDown: TypeAlias = Literal["defer", "accept", "refuse"]
"""Values of the key ``when-down``."""

_WHEN_DOWN = {
    "defer": "451 4.7.1 Service unavailable, try again later",
    "refuse": "554 5.3.0 The message cannot be checked",
}

EDIT_BYTES = 100
"""Bytes by which an edit without a value counts: 2,500 of them are made in a thread."""

CHANGES_BESIDES = 1 << 20
"""Bytes by which a changed message may exceed the maximum size of a message."""

THREAD_BYTES = 1 << 18
"""Bytes of a message above which changes are made in a thread."""


async def in_thread_if_large(size: int, function: Callable[..., Result], *arguments: Any) -> Result:
    """Call a function that copies or hashes a message; in a thread if the message is large.

    :param size: the size of the message, in bytes
    """
    if size <= THREAD_BYTES:
        return function(*arguments)
    await asyncio.sleep(0)  # see may_end_at_once()
    return await asyncio.to_thread(function, *arguments)


class ContentFilter(Filter):
    """A filter that has an external program check messages.

    :param program: the program's name for the log, without a password
    :param when_down: what happens to messages when the program is unreachable, too slow or broken
    :param when_quarantined: what happens to messages that the program quarantines
    :cvar log: the logger of the filter
    :ivar outage: the time and the reason since when the program is unreachable
    """

    supports_dsn = True
    supports_binarymime = True
    """The filter keeps all octets that the program does not change; the sinks decide about both
    extensions."""

    log: ClassVar[logging.Logger]

    def __init__(
        self, program: str, when_down: WhenDown, when_quarantined: WhenQuarantined | None
    ) -> None:
        self.program = program
        self._when_down = when_down
        self._when_quarantined = when_quarantined
        self.quarantines = when_quarantined == "sink"
        self._reporter = client_reporter()
        self.outage = Outage()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.program.partition(' ')[2]}>"

    async def close(self) -> None:
        """Write the pending log lines."""
        self._reporter.close()

    @staticmethod
    def mail_of(server: Any, session: AnySession, envelope: Envelope) -> Mail:
        """Return the message without trace fields, with the queue ID that the sinks use as well."""
        if getattr(envelope, "queue_id", None) is None:
            envelope.queue_id = new_queue_id(session)  # type: ignore[attr-defined] # of ours
        return Mail.of(server, session, envelope, with_trace=False)

    async def change(
        self, server: Any, envelope: Envelope, mail: Mail, parts: Parts, edits: Sequence[Edit],
        removed: Mapping[bytes, Collection[int]] | None = None, *, leading_space: bool = False,
    ) -> str:  # fmt: skip
        """Change a message and its envelope.

        :returns: an empty string, or the reply that refuses a message that has become too large
        """

        def edited() -> bytes:
            return parts.edited(
                edits, leading_space=leading_space, binary=mail.binary, removed=removed
            )

        size = len(mail.content) + sum([len(edit.value) + EDIT_BYTES for edit in edits])
        content = await in_thread_if_large(size, edited)
        limit = getattr(server, "data_size_limit", None)
        if limit and len(content) > max(limit, len(mail.content)) + CHANGES_BESIDES:
            return TOO_LARGE
        if content is not mail.content:
            await in_thread_if_large(size, replace_content, envelope, content)
        change_envelope(envelope, edits)
        return ""

    async def pass_on(self, envelope: Envelope, mail: Mail, quarantine: str | None) -> Any:
        """Return MISSING to pass a message to the next handler, or a reply that ends it here.

        A message ends here if it has no recipient left, or if a quarantined message is withheld.

        :param quarantine: the reason to quarantine the message; None: it is not quarantined
        """
        if not envelope.rcpt_tos:
            return self.discard(mail, "no recipient is left")
        if quarantine is None:
            return MISSING
        self.note(mail, "a message is quarantined", quarantine)
        how = self._when_quarantined
        return await in_thread_if_large(len(mail.content), quarantine_by, envelope, quarantine, how)

    def discard(self, mail: Mail, why: str) -> str:
        """Log that a message is discarded, and return its reply."""
        self.note(mail, "message discarded", why)
        return DISCARDED

    def answer_down(self, session: AnySession, reason: str) -> str:
        """Log a failure of the program; return the reply, or an empty string to accept."""
        self.outage.begin(reason)
        line = ClientLine.of(
            self.log, logging.WARNING, session.peer, f"{self.program} has failed",
            f"{printable(reason)}; {self._when_down}", session=getattr(session, "id", ""),
        )  # fmt: skip
        self._reporter.note(line)
        return _WHEN_DOWN.get(self._when_down, "")

    def note(self, mail: Mail, what: str, why: str) -> None:
        """Log an event of a message.

        :param what: the event
        :param why: its reason
        """
        line = ClientLine.of(
            self.log, logging.WARNING, mail.client.peer, f"{self.program}: {what}",
            printable(why), session=mail.id.rpartition("-")[0], queue_id=mail.id,
        )  # fmt: skip
        self._reporter.note(line)
