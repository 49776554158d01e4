"""rspamd: have rspamd check each message, over HTTP.

rspamd answers with an action and with changes to the header. Messages of authenticated clients and
of clients in ``--exempt`` are not checked by default.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from aiosmtpd.smtp import MISSING, Envelope
from aiosmtpd.smtp import Session as AnySession

from smtpd_fork.dialogue.notes import add_score, add_tag, notes_of
from smtpd_fork.errors import CannotCreateError
from smtpd_fork.filters.content_filter import (
    HEADER_TOO_LARGE,
    ContentFilter,
    WhenDown,
    in_thread_if_large,
)
from smtpd_fork.filters.greylist import Greylist
from smtpd_fork.filters.when_quarantined import WhenQuarantined  # noqa: TC001 - for the settings
from smtpd_fork.hops.client_reply import client_reply
from smtpd_fork.hops.milter.edited import HeaderTooLargeError, Parts
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

_ACCEPTED = frozenset({"no action", REWRITE_SUBJECT, ADD_HEADER})
"""Actions of messages that are passed on."""

_TAGGED = frozenset({"greylist", REWRITE_SUBJECT, ADD_HEADER, "quarantine", "reject"})
"""Actions that are added to a message as a tag."""

LARGE_ANSWER = 1 << 14
"""Bytes of an answer above which its fields are made in a thread: a Subject of the client that is
not ASCII takes a microsecond per byte to encode."""

MOST_UNKNOWN = 100
"""Maximum unknown actions that are remembered, so that each is logged only once."""


class Rspamd(ContentFilter):
    """Has rspamd check each message.

    :param url: URL of an rspamd worker that serves ``/checkv2``: ``http://HOST:PORT`` or
        ``unix:PATH``; several are tried in order
    :param password: the password of the worker
    :param timeout: timeout of a server's answer, in seconds
    :param connections: maximum connections to each server
    :param ca_file: file of the CA certificates to verify a server's certificate with; default: the
        system's
    :param when_down: what happens to messages when no server answers: ``defer`` (451), ``refuse``
        (554) or ``accept``
    :param reject: what happens to messages that rspamd rejects: ``refuse`` (554), ``discard``, or
        ``quarantine``
    :param when_quarantined: what happens to quarantined messages; see
        :class:`~smtpd_fork.filters.Milter`
    :param skip_authenticated: whether messages of authenticated clients are not checked
    :param skip_exempt: whether messages of clients in ``--exempt`` are not checked
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
        """Check that the servers answer and accept the password; log those that are down.

        :raises CannotCreateError: the CA certificates cannot be read
        :raises HandlerError: a server refuses the password
        """
        self._servers.check()

    def prepare(self) -> None:
        """Check the servers the first time; do nothing later."""
        self._servers.prepare()

    @property
    def status(self) -> PeerStatus:
        """The state of the servers; they are down if none of them answers."""
        busy = self._servers.busy
        return PeerStatus(busy, busy, 0, self.outage.since, self.outage.reason)

    async def close(self) -> None:
        """Close the connections."""
        await super().close()
        await self._servers.close()

    async def handle_DATA(self, server: Any, session: AnySession, envelope: Envelope) -> Any:
        """Refuse a message, change it, or pass it to the next handler unchanged."""
        if self._skip_authenticated and session.authenticated:
            return MISSING
        if self._skip_exempt and getattr(server, "exempt", False):
            return MISSING
        with self.request() as request:
            request.answer = await self._answer(server, session, envelope)
        return request.answer

    async def _answer(self, server: Any, session: AnySession, envelope: Envelope) -> Any:
        """Send a request about a message, and apply the answer; return the answer of the hook."""
        mail = self.mail_of(server, session, envelope)
        fields = list(request_fields(mail, session, server.hostname))
        try:
            octets = await self._servers.ask(fields, mail.content)
            answer, is_large = parse_answer(octets), len(octets) > LARGE_ANSWER
            self.outage.end()
            return await self._carry_out(server, envelope, mail, answer, is_large=is_large)
        except HeaderTooLargeError:
            return HEADER_TOO_LARGE
        except (RspamdDownError, RspamdGarbageError, CannotCreateError) as error:
            return self.answer_down(session, str(error)) or MISSING

    async def _carry_out(
        self, server: Any, envelope: Envelope, mail: Mail, answer: Answer, *, is_large: bool
    ) -> Any:
        """Apply rspamd's answer to a message; return the answer of the hook."""
        action = "no action" if answer.block.no_action else answer.action
        _note_result(envelope, answer, action)
        refusal = await self._refusal(action, mail, answer)
        if not refusal and (
            answer.milter or answer.signatures or action in {REWRITE_SUBJECT, ADD_HEADER}
        ):
            parts = Parts(mail.content)
            names = [name for name, _ in parts.names_and_values]
            made = partial(changes_of, answer, names, utf8=mail.utf8)
            changes = await asyncio.to_thread(made) if is_large else made()
            if changes:
                refusal = await self.change(
                    server, envelope, mail, parts, changes.edits, changes.removed
                )
        if refusal:
            return refusal
        is_quarantined = action in {"quarantine", "reject"}
        if not is_quarantined and action not in _ACCEPTED:
            self._note_unknown(action)
        reason = (answer.smtp_message or action) if is_quarantined else None
        return await self.pass_on(envelope, mail, reason)

    async def _refusal(self, action: str, mail: Mail, answer: Answer) -> str:
        """Return the reply to a message that is not passed on, or an empty string."""
        reject = answer.block.reject or self._reject
        if action == "discard" or (action == "reject" and reject == "discard"):
            return self.discard(mail, f"action {answer.action}")
        if action == "reject" and reject != "quarantine":
            return _reply(554, answer.smtp_message or "5.7.1 Spam message rejected")
        if action == "soft reject" or (action == "greylist" and await self._is_delayed(mail)):
            return _reply(451, answer.smtp_message or "4.7.1 Try again later")
        return ""

    async def _is_delayed(self, mail: Mail) -> bool:
        """Return whether a message is delayed by greylisting in this process.

        rspamd's own greylisting module answers "soft reject"; without the module, the action
        "greylist" leaves it to the mail server.
        """
        key = await in_thread_if_large(len(mail.content), getattr, mail, "key")
        return self._greylist.delays(key, time.monotonic())

    def _note_unknown(self, action: str) -> None:
        if action == "greylist" or action in self._unknown or len(self._unknown) >= MOST_UNKNOWN:
            return
        self._unknown.add(action)
        self.log.warning(
            "%s: the action %s is not known; messages with it are accepted",
            *(self.program, printable(action, 80)),
        )


def _note_result(envelope: Envelope, answer: Answer, action: str) -> None:
    """Store score, action and symbols for the later handlers."""
    if answer.score:
        add_score(envelope, answer.score)
    if action in _TAGGED:
        with suppress(ValueError):  # the message has the maximum of tags
            add_tag(envelope, action.replace(" ", "-"))
    notes_of(envelope)["rspamd"] = {
        "action": answer.action, "score": answer.score, "symbols": answer.symbol_names,
    }  # fmt: skip


def _reply(code: int, text: str) -> str:
    """Return a reply with a text of rspamd, which is cleaned, cut and put on one line."""
    if not _ENHANCED.match(text):
        text = f"{str(code)[0]}.7.1 {text}"
    return client_reply(HopReply(code, tuple(text.splitlines())))
