"""milter: asks a milter about each message, such as OpenDKIM, ClamAV's or rspamd.

It is told all at the end of the message, over a connection of its own: an idle session costs none.
With ``stages`` it is told of the sender and of each recipient as the client names them, and can
refuse them then. What it changes, the handlers behind see, other milters among them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

from aiosmtpd.smtp import MISSING, Envelope
from aiosmtpd.smtp import Session as AnySession

from smtpd_fork.filters.base import Filter
from smtpd_fork.filters.milter_address import parse_milter_address
from smtpd_fork.filters.milter_changes import change_envelope
from smtpd_fork.filters.milter_talk import Limits, Talk
from smtpd_fork.filters.when_quarantined import WhenQuarantined, put_aside
from smtpd_fork.gate import ClientLine, client_reporter
from smtpd_fork.hops.milter.edited import HeaderTooLargeError, Parts
from smtpd_fork.hops.milter.verdict import Kind
from smtpd_fork.message import Mail, Recipient
from smtpd_fork.message.fields import replace_content
from smtpd_fork.message.mail import new_queue_id
from smtpd_fork.sanitizer import printable
from smtpd_fork.setting_types import Seconds, SettingError, Text

if TYPE_CHECKING:
    from smtpd_fork.hops.milter.verdict import Edit, Verdict

__all__ = ["Milter"]

log = logging.getLogger("smtpd_fork.milter")

DISCARDED = "250 2.0.0 Ok: discarded"
HEADER_TOO_LARGE = "552 5.3.4 The header of the message is too large"
TOO_LARGE = "552 5.3.4 The message is too large with the changes of a filter"

_WHEN_DOWN = {
    "defer": "451 4.7.1 Service unavailable, try again later",
    "refuse": "554 5.3.0 The message cannot be checked",
}

MOST_CHANGED = 33_554_432
"""Bytes that a milter may change, if messages have no limit: aiosmtpd's limit of a message."""

CHANGES_BESIDES = 1 << 20
"""Bytes of its changes beyond the largest message."""

THREAD_BYTES = 1 << 18
"""A larger message is put together in a thread."""


class Milter(Filter):
    """Asks a milter about each message.

    :param address: ``unix:PATH``, ``HOST:PORT`` or ``inet:PORT@HOST``
    :param stages: when it is asked: ``data``, at the end of the message, always; ``rcpt`` and
        ``mail`` as well, at these commands
    :param when_down: what happens to messages when the milter is out of reach, too slow or
        broken: ``defer`` (451), ``refuse`` (554) or ``accept``
    :param when_quarantined: what happens to messages that the milter wants put aside: ``sink``,
        those with ``quarantine = true`` take them, with a field X-Quarantine; ``defer`` (451),
        ``refuse`` (550), or ``mark``: they go on, with this field; default: ``sink`` if there is
        one, else ``defer``
    :param connect_timeout: seconds for the connection
    :param timeout: seconds for an answer; a milter that says that it is at work has more
    :param total_timeout: seconds for all its answers to a command or a message
    :param daemon_name: the macro ``{daemon_name}``, by which some milters tell servers apart
    """

    supports_dsn = True
    supports_binarymime = True
    """Messages go on to the sinks, which decide about both; all octets stay but what is changed."""

    def __init__(
        self,
        address: Text,
        *,
        stages: Sequence[Literal["mail", "rcpt", "data"]] = ("data",),
        when_down: Literal["defer", "accept", "refuse"] = "defer",
        when_quarantined: WhenQuarantined | None = None,
        connect_timeout: Seconds = 5.0,
        timeout: Seconds = 60.0,
        total_timeout: Seconds = 240.0,
        daemon_name: Text = "smtpd-fork",
    ) -> None:
        self._address = parse_milter_address(address)
        self._limits = Limits(connect_timeout, timeout, total_timeout)
        self._when_down = when_down
        self._when_quarantined = when_quarantined
        self.quarantines = when_quarantined == "sink"
        self._daemon_name = daemon_name
        self._talks: WeakKeyDictionary[AnySession, Talk] = WeakKeyDictionary()
        self._reporter = client_reporter()
        known = {"mail": "handle_MAIL", "rcpt": "handle_RCPT", "data": ""}
        for stage in stages:
            if stage not in known:
                raise SettingError("stages", stage, f"the stages are {', '.join(known)}")
        self._live = bool({"mail", "rcpt"} & set(stages))
        if "mail" in stages:
            self.handle_MAIL = self._at_sender
        if "rcpt" in stages:
            self.handle_RCPT = self._at_recipient
        if self._live:
            self.handle_RSET = self._at_reset
            self.handle_DISCONNECT = self._at_end

    def __repr__(self) -> str:
        return f"<Milter {self._address}>"

    async def close(self) -> None:
        """Write what was gathered for the log."""
        self._reporter.close()

    # -- as the client speaks, with stages ---------------------------------------------------------

    async def _at_sender(
        self, server: Any, session: AnySession, envelope: Envelope, address: str, options: list[str]
    ) -> Any:
        self._drop(session)
        talk = self._talks[session] = self._talk(server, session, envelope)
        mail = replace(Mail.of(server, session, envelope), sender=address.removeprefix("<>"))
        await talk.begin(server, session, mail)
        refusal = self._refusal(session, talk)
        if refusal:
            self._drop(session)
        return refusal or MISSING

    async def _at_recipient(
        self, server: Any, session: AnySession, envelope: Envelope, address: str, options: list[str]
    ) -> Any:
        talk = self._talks.get(session)
        if talk is None or talk.envelope is not envelope:
            self._drop(session)
            talk = self._talks[session] = self._talk(server, session, envelope)
        mail = Mail.of(server, session, envelope)
        words = [option.partition("=") for option in options]
        parameters = {name: value if equals else True for name, equals, value in words}
        refused = await talk.recipient(server, session, mail, Recipient(address, parameters))
        return self._refusal(session, talk) or refused or MISSING

    async def _at_reset(self, _: Any, session: AnySession, __: Envelope) -> Any:
        self._drop(session)
        return MISSING

    async def _at_end(self, _: Any, session: AnySession) -> None:
        self._drop(session)

    def _drop(self, session: AnySession) -> None:
        talk = self._talks.pop(session, None)
        if talk is not None:
            talk.close()

    def _refusal(self, session: AnySession, talk: Talk) -> str:
        """Return why a command is refused; empty if it is not."""
        if talk.down:
            return self._answer_down(session, talk.down)
        verdict = talk.verdict
        return verdict.reply if verdict is not None and verdict.kind is Kind.REFUSE else ""

    # -- at the end of the message -----------------------------------------------------------------

    async def handle_DATA(self, server: Any, session: AnySession, envelope: Envelope) -> Any:
        """Refuse a message, change it, or leave it as it is to the next handler."""
        talk = self._talks.pop(session, None)
        if talk is None or talk.envelope is not envelope:
            talk = self._talk(server, session, envelope)
        try:
            mail = Mail.of(server, session, envelope)
            parts = Parts(mail.content)
            await talk.message(server, session, mail, parts)
        except HeaderTooLargeError:
            return HEADER_TOO_LARGE
        finally:
            talk.close()
        verdict = talk.verdict
        if verdict is None:
            return self._answer_down(session, talk.down) or MISSING
        if verdict.kind is Kind.REFUSE:
            return verdict.reply
        if verdict.kind is Kind.DISCARD:
            return self._discard(mail, "the milter discards it")
        leading_space = talk.conversation.leading_space
        return await self._carry_out(
            *(server, envelope, mail, verdict, parts), leading_space=leading_space
        )

    def _talk(self, server: Any, session: AnySession, envelope: Envelope) -> Talk:
        if getattr(envelope, "queue_id", None) is None:
            envelope.queue_id = new_queue_id(session)  # type: ignore[attr-defined] # of ours
        room = (getattr(server, "data_size_limit", None) or MOST_CHANGED) + CHANGES_BESIDES
        return Talk(
            *(self._address, self._limits, envelope, room),
            daemon_name=self._daemon_name,
            each_recipient=self._live,
        )

    async def _carry_out(
        self, server: Any, envelope: Envelope, mail: Mail, verdict: Verdict, parts: Parts,
        *, leading_space: bool,
    ) -> Any:  # fmt: skip
        """Do what the milter wants of a message that it accepts."""
        if verdict.edits:
            content = await _edited(parts, mail, verdict.edits, leading_space=leading_space)
            limit = getattr(server, "data_size_limit", None)
            if limit and len(content) > max(limit, len(mail.content)) + CHANGES_BESIDES:
                return TOO_LARGE
            if content is not mail.content:
                replace_content(envelope, content)
            change_envelope(envelope, verdict.edits)
        if not envelope.rcpt_tos:
            return self._discard(mail, "the milter leaves no recipient")
        if verdict.quarantine is not None:
            self._note(mail, "the milter quarantines a message", verdict.quarantine)
            return put_aside(envelope, verdict.quarantine, self._when_quarantined)
        return MISSING

    # -- the log -----------------------------------------------------------------------------------

    def _discard(self, mail: Mail, why: str) -> str:
        self._note(mail, "message discarded", why)
        return DISCARDED

    def _answer_down(self, session: AnySession, reason: str) -> str:
        """Return the reply while the milter is down; empty if messages are accepted."""
        line = ClientLine.of(
            log, logging.WARNING, session.peer, f"milter {self._address} has failed",
            f"{printable(reason)}; {self._when_down}", session=getattr(session, "id", ""),
        )  # fmt: skip
        self._reporter.note(line)
        return _WHEN_DOWN.get(self._when_down, "")

    def _note(self, mail: Mail, what: str, why: str) -> None:
        line = ClientLine.of(
            log, logging.WARNING, mail.client.peer, f"milter {self._address}: {what}",
            printable(why), session=mail.id.rpartition("-")[0], queue_id=mail.id,
        )  # fmt: skip
        self._reporter.note(line)


async def _edited(parts: Parts, mail: Mail, edits: Sequence[Edit], *, leading_space: bool) -> bytes:
    """Return the content with its changes; a thread puts a large one together."""

    def edited() -> bytes:
        return parts.edited(edits, leading_space=leading_space, binary=mail.binary)

    size = len(mail.content) + sum(len(edit.value) for edit in edits)
    return await asyncio.to_thread(edited) if size > THREAD_BYTES else edited()
