"""ContentFilter: a filter whose answers about messages come from a program of others."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from aiosmtpd.smtp import MISSING, Envelope
from aiosmtpd.smtp import Session as AnySession

from smtpd_fork.filters.base import Filter
from smtpd_fork.filters.milter_changes import change_envelope
from smtpd_fork.filters.when_quarantined import WhenQuarantined, put_aside
from smtpd_fork.gate import ClientLine, client_reporter
from smtpd_fork.hops.peer_status import Outage
from smtpd_fork.message import Mail
from smtpd_fork.message.fields import replace_content
from smtpd_fork.message.mail import new_queue_id
from smtpd_fork.sanitizer import printable

if TYPE_CHECKING:
    from smtpd_fork.hops.milter.edited import Parts
    from smtpd_fork.hops.milter.verdict import Edit

__all__ = ["CHANGES_BESIDES", "HEADER_TOO_LARGE", "ContentFilter", "WhenDown"]

DISCARDED = "250 2.0.0 Ok: discarded"
HEADER_TOO_LARGE = "552 5.3.4 The header of the message is too large"
TOO_LARGE = "552 5.3.4 The message is too large with the changes of a filter"

WhenDown: TypeAlias = Literal["defer", "accept", "refuse"]
"""The key ``when-down`` of filters."""

_WHEN_DOWN = {
    "defer": "451 4.7.1 Service unavailable, try again later",
    "refuse": "554 5.3.0 The message cannot be checked",
}

CHANGES_BESIDES = 1 << 20
"""Bytes of changes beyond the largest message."""

THREAD_BYTES = 1 << 18
"""A larger message is put together in a thread."""


class ContentFilter(Filter):
    """A filter whose answers about messages come from a program of others.

    :param program: its name for the log, without a password
    :param when_down: what happens to messages when it is out of reach, too slow or broken
    :param when_quarantined: what happens to messages that it wants put aside
    :cvar log: of the filter
    :ivar outage: since when the program is out of reach
    """

    supports_dsn = True
    supports_binarymime = True
    """Messages go on to the sinks, which decide about both; all octets stay but what is changed."""

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
        """Write what was gathered for the log."""
        self._reporter.close()

    @staticmethod
    def mail_of(server: Any, session: AnySession, envelope: Envelope) -> Mail:
        """Return the message, without its trace; its id is that of the sinks as well."""
        if getattr(envelope, "queue_id", None) is None:
            envelope.queue_id = new_queue_id(session)  # type: ignore[attr-defined] # of ours
        return Mail.of(server, session, envelope, with_trace=False)

    async def change(
        self, server: Any, envelope: Envelope, mail: Mail, parts: Parts, edits: Sequence[Edit],
        removed: Mapping[bytes, Collection[int]] | None = None, *, leading_space: bool = False,
    ) -> str:  # fmt: skip
        """Change a message and its envelope; return the refusal if it is too large then."""

        def edited() -> bytes:
            return parts.edited(
                edits, leading_space=leading_space, binary=mail.binary, removed=removed
            )

        size = len(mail.content) + sum([len(edit.value) for edit in edits])
        content = await asyncio.to_thread(edited) if size > THREAD_BYTES else edited()
        limit = getattr(server, "data_size_limit", None)
        if limit and len(content) > max(limit, len(mail.content)) + CHANGES_BESIDES:
            return TOO_LARGE
        if content is not mail.content:
            replace_content(envelope, content)
        change_envelope(envelope, edits)
        return ""

    def pass_on(self, envelope: Envelope, mail: Mail, quarantine: str | None) -> Any:
        """Return MISSING: a message goes on; or a reply, if it is withheld or has no recipient.

        :param quarantine: why it is to be put aside; None: it is not
        """
        if not envelope.rcpt_tos:
            return self.discard(mail, "no recipient is left")
        if quarantine is None:
            return MISSING
        self.note(mail, "a message is quarantined", quarantine)
        return put_aside(envelope, quarantine, self._when_quarantined)

    def discard(self, mail: Mail, why: str) -> str:
        """Return the reply to a message that is forgotten."""
        self.note(mail, "message discarded", why)
        return DISCARDED

    def answer_down(self, session: AnySession, reason: str) -> str:
        """Return the reply while the program is down; empty if messages are accepted."""
        self.outage.begin(reason)
        line = ClientLine.of(
            self.log, logging.WARNING, session.peer, f"{self.program} has failed",
            f"{printable(reason)}; {self._when_down}", session=getattr(session, "id", ""),
        )  # fmt: skip
        self._reporter.note(line)
        return _WHEN_DOWN.get(self._when_down, "")

    def note(self, mail: Mail, what: str, why: str) -> None:
        """Log what the program does to a message."""
        line = ClientLine.of(
            self.log, logging.WARNING, mail.client.peer, f"{self.program}: {what}",
            printable(why), session=mail.id.rpartition("-")[0], queue_id=mail.id,
        )  # fmt: skip
        self._reporter.note(line)
