"""rspamd: asks rspamd about each message, over HTTP.

rspamd answers with an action and with changes of the header. A client that has authenticated, or is
one of ``--exempt``, is not asked about unless the settings say so.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal

from aiosmtpd.smtp import MISSING, Envelope
from aiosmtpd.smtp import Session as AnySession

from smtpd_fork.dialogue.notes import add_score, add_tag, notes_of
from smtpd_fork.errors import CannotCreateError
from smtpd_fork.filters.content_filter import (
    HEADER_TOO_LARGE,
    THREAD_BYTES,
    ContentFilter,
    WhenDown,
)
from smtpd_fork.filters.greylist import Greylist
from smtpd_fork.filters.when_quarantined import WhenQuarantined  # noqa: TC001 - for the settings
from smtpd_fork.hops.milter.edited import HeaderTooLargeError, Parts
from smtpd_fork.hops.passed_on import passed_on
from smtpd_fork.hops.peer_status import PeerStatus
from smtpd_fork.hops.replies import HopReply
from smtpd_fork.hops.rspamd.answer import RspamdGarbageError, parse_answer
from smtpd_fork.hops.rspamd.edits import ADD_HEADER, REWRITE_SUBJECT, changes_of
from smtpd_fork.hops.rspamd.request import request_fields
from smtpd_fork.hops.rspamd.servers import RspamdDownError, Servers
from smtpd_fork.sanitizer import HIDDEN, printable
from smtpd_fork.setting_types import Count, FilePath, Seconds, Secret, SettingError, Text

if TYPE_CHECKING:
    from smtpd_fork.hops.rspamd.answer import Answer
    from smtpd_fork.message import Mail

__all__ = ["Rspamd"]

_ENHANCED = re.compile(r"[45]\.[0-9]{1,3}\.[0-9]{1,3}(?: |$)")

_TAKES = frozenset({"no action", REWRITE_SUBJECT, ADD_HEADER})
"""Actions of messages that go on."""

_MARKED = frozenset({"greylist", REWRITE_SUBJECT, ADD_HEADER, "quarantine", "reject"})
"""Actions that a message has as a tag."""

MOST_UNKNOWN = 100
"""Actions of another name that are remembered: each gets one line in the log."""


class Rspamd(ContentFilter):
    """Asks rspamd about each message.

    :param url: of a worker of rspamd that answers ``/checkv2``, ``http://HOST:PORT`` or
        ``unix:PATH``; several are asked in order, if those before are down
    :param password: of the worker
    :param timeout: seconds for the answer of a server
    :param connections: to each server at once
    :param ca_file: certificates of the CAs that a server's certificate is verified with; default:
        the system's
    :param when_down: what happens to messages when no server answers: ``defer`` (451), ``refuse``
        (554) or ``accept``
    :param reject: what happens to messages that rspamd rejects: ``refuse`` (554), ``discard``, or
        ``quarantine``
    :param when_quarantined: what happens to messages that are to be put aside; see
        :class:`~smtpd_fork.filters.Milter`
    :param skip_authenticated: clients that have authenticated are not asked about
    :param skip_exempt: clients of ``--exempt`` are not asked about
    """

    log = logging.getLogger("smtpd_fork.rspamd")

    def __init__(
        self,
        url: Sequence[Text],
        *,
        password: Secret | None = None,
        timeout: Seconds = 30.0,
        connections: Count = 50,
        ca_file: FilePath | None = None,
        when_down: WhenDown = "defer",
        reject: Literal["refuse", "discard", "quarantine"] = "refuse",
        when_quarantined: WhenQuarantined | None = None,
        skip_authenticated: bool = True,
        skip_exempt: bool = True,
    ) -> None:
        if password is not None and not (password.isascii() and password.isprintable()):
            raise SettingError("password", HIDDEN, "only printable ASCII can be sent")
        urls = [url] if isinstance(url, str) else url
        self._servers = Servers(
            list(urls), password=password, seconds=timeout, connections=connections, ca_file=ca_file
        )
        super().__init__(f"rspamd {self._servers}", when_down, when_quarantined)
        self._reject = reject
        self._skip_authenticated = skip_authenticated
        self._skip_exempt = skip_exempt
        self._greylist = Greylist()
        self._unknown: set[str] = set()

    def check(self) -> None:
        """See whether the servers answer, and take the password; one that is down is no error.

        :raises CannotCreateError: the CAs' certificates cannot be read
        :raises HandlerError: a server refuses the password
        """
        self._servers.check()

    def prepare(self) -> None:
        """See whether the servers answer, as :meth:`check`; once is enough."""
        self._servers.prepare()

    @property
    def status(self) -> PeerStatus:
        """What is known of the servers; they are down if none of them answers."""
        busy = self._servers.busy
        return PeerStatus(busy, busy, 0, self.outage.since, self.outage.reason)

    async def close(self) -> None:
        """Close the connections."""
        await super().close()
        await self._servers.close()

    async def handle_DATA(self, server: Any, session: AnySession, envelope: Envelope) -> Any:
        """Refuse a message, change it, or leave it as it is to the next handler."""
        if self._skip_authenticated and session.authenticated:
            return MISSING
        if self._skip_exempt and getattr(server, "exempt", False):
            return MISSING
        mail = self.mail_of(server, session, envelope)
        fields = list(request_fields(mail, session, server.hostname))
        try:
            answer = parse_answer(await self._servers.ask(fields, mail.content))
            self.outage.end()
            return await self._carry_out(server, envelope, mail, answer)
        except HeaderTooLargeError:
            return HEADER_TOO_LARGE
        except (RspamdDownError, RspamdGarbageError, CannotCreateError) as error:
            return self.answer_down(session, str(error)) or MISSING

    async def _carry_out(self, server: Any, envelope: Envelope, mail: Mail, answer: Answer) -> Any:
        """Do what rspamd wants."""
        action = "no action" if answer.block.no_action else answer.action
        _mark(envelope, answer, action)
        refusal = await self._refusal(action, mail, answer)
        if not refusal and (
            answer.milter or answer.signatures or action in {REWRITE_SUBJECT, ADD_HEADER}
        ):
            parts = Parts(mail.content)
            names = (name for name, _ in parts.names_and_values)
            changes = changes_of(answer, names, utf8=mail.utf8)
            if changes:
                refusal = await self.change(
                    server, envelope, mail, parts, changes.edits, changes.removed
                )
        if refusal:
            return refusal
        is_quarantined = action in {"quarantine", "reject"}
        if not is_quarantined and action not in _TAKES:
            self._note_unknown(action)
        reason = (answer.smtp_message or action) if is_quarantined else None
        return self.pass_on(envelope, mail, reason)

    async def _refusal(self, action: str, mail: Mail, answer: Answer) -> str:
        """Return the reply to a message that goes no further; empty if it does."""
        reject = answer.block.reject or self._reject
        if action == "discard" or (action == "reject" and reject == "discard"):
            return self.discard(mail, f"action {answer.action}")
        if action == "reject" and reject != "quarantine":
            return _reply(554, answer.smtp_message or "5.7.1 Spam message rejected")
        if action == "soft reject" or (action == "greylist" and await self._is_delayed(mail)):
            return _reply(451, answer.smtp_message or "4.7.1 Try again later")
        return ""

    async def _is_delayed(self, mail: Mail) -> bool:
        """Whether a message is to be greylisted here.

        rspamd's own greylisting answers "soft reject"; "greylist" is its advice where it does none.
        """
        large = len(mail.content) > THREAD_BYTES
        key = await asyncio.to_thread(getattr, mail, "key") if large else mail.key
        return self._greylist.delays(key, time.monotonic())

    def _note_unknown(self, action: str) -> None:
        if action == "greylist" or action in self._unknown or len(self._unknown) >= MOST_UNKNOWN:
            return
        self._unknown.add(action)
        self.log.warning(
            "%s: the action %s is not known, such messages are accepted",
            *(self.program, printable(action, 80)),
        )


def _mark(envelope: Envelope, answer: Answer, action: str) -> None:
    """Note score, action and symbols, for the handlers behind this one."""
    if answer.score:
        add_score(envelope, answer.score)
    if action in _MARKED:
        with suppress(ValueError):  # it has a hundred of them
            add_tag(envelope, action.replace(" ", "-"))
    notes_of(envelope)["rspamd"] = {
        "action": answer.action, "score": answer.score, "symbols": answer.symbol_names,
    }  # fmt: skip


def _reply(code: int, text: str) -> str:
    """Return a reply with a text of rspamd, checked, cut and on one line."""
    if not _ENHANCED.match(text):
        text = f"{str(code)[0]}.7.1 {text}"
    return passed_on(HopReply(code, tuple(text.splitlines())))
