"""milter: asks a milter about each message, such as OpenDKIM, ClamAV's or rspamd.

It learns all at the end of the message: an idle session costs no connection. With ``stages`` it
learns of the client, its greeting, the sender and each recipient as they come, and can refuse them
then. What it changes, the handlers behind see, other milters among them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from aiosmtpd.smtp import MISSING, Envelope
from aiosmtpd.smtp import Session as AnySession

from smtpd_fork.filters.content_filter import (
    CHANGES_BESIDES,
    HEADER_TOO_LARGE,
    ContentFilter,
    WhenDown,
)
from smtpd_fork.filters.milter_address import parse_milter_address
from smtpd_fork.filters.milter_sessions import MilterSessions
from smtpd_fork.filters.milter_talk import MilterTarget, Talk
from smtpd_fork.filters.when_quarantined import WhenQuarantined  # noqa: TC001 - for the settings
from smtpd_fork.hops.look import LOOK_SECONDS, look_in_thread
from smtpd_fork.hops.milter.connection import MilterDownError
from smtpd_fork.hops.milter.edited import HeaderTooLargeError, Parts
from smtpd_fork.hops.milter.verdict import Kind
from smtpd_fork.hops.peer_status import PeerStatus
from smtpd_fork.message import Mail, Recipient
from smtpd_fork.sanitizer import printable
from smtpd_fork.setting_types import Seconds, SettingError, Text

if TYPE_CHECKING:
    from collections.abc import Callable


__all__ = ["Milter"]

log = logging.getLogger("smtpd_fork.milter")

MOST_CHANGED = 33_554_432
"""Bytes that a milter may change, if messages have no limit: aiosmtpd's limit of a message."""


class Milter(ContentFilter):
    """Asks a milter about each message.

    :param address: ``unix:PATH``, ``HOST:PORT`` or ``inet:PORT@HOST``
    :param stages: when it is asked: ``data``, at the end of the message, always; ``connect``,
        ``helo``, ``mail`` and ``rcpt`` as well, as the client connects and at these commands
    :param when_down: what happens to messages when the milter is out of reach, too slow or
        broken: ``defer`` (451), ``refuse`` (554) or ``accept``
    :param when_quarantined: what happens to messages that the milter wants put aside: ``sink``,
        those with ``quarantine = true`` take them, with a field X-Quarantine; ``defer`` (451),
        ``refuse`` (550), or ``mark``: they go on, with this field; default: ``sink`` if there is
        one, else ``defer``
    :param connect_timeout: seconds for the connection
    :param timeout: seconds for an answer; a milter that says that it is at work has more
    :param total_timeout: seconds for all its answers to a command or a message
    :param daemon_name: the macro ``{daemon_name}``, by which some milters tell servers apart, and
        which rspamd takes for the name in Authentication-Results; default: that of this server
    """

    log = logging.getLogger("smtpd_fork.milter")

    def __init__(
        self,
        address: Text,
        *,
        stages: Sequence[Literal["connect", "helo", "mail", "rcpt", "data"]] = ("data",),
        when_down: WhenDown = "defer",
        when_quarantined: WhenQuarantined | None = None,
        connect_timeout: Seconds = 5.0,
        timeout: Seconds = 60.0,
        total_timeout: Seconds = 240.0,
        daemon_name: Text | None = None,
    ) -> None:
        times = connect_timeout, timeout, total_timeout
        self._target = MilterTarget(parse_milter_address(address), daemon_name, *times)
        super().__init__(f"milter {self._target.address}", when_down, when_quarantined)
        asked = self._hooks_of(stages)
        self._sessions = MilterSessions(self._talk, live=bool(asked))
        for name, hook in asked.items():
            setattr(self, name, hook)

    def _hooks_of(self, stages: Sequence[str]) -> dict[str, Any]:
        """Return the hooks of the stages, by name."""
        hooks: dict[str, dict[str, Any]] = {
            "connect": {"handle_CONNECT": self._at_connect},
            "helo": {"handle_HELO": self._at_helo, "handle_EHLO": self._at_ehlo},
            "mail": {"handle_MAIL": self._at_sender},
            "rcpt": {"handle_RCPT": self._at_recipient},
            "data": {},
        }
        asked: dict[str, Any] = {}
        for stage in stages:
            if stage not in hooks:
                raise SettingError("stages", stage, f"the stages are {', '.join(hooks)}")
            asked |= hooks[stage]
        if asked:
            asked |= {"handle_RSET": self._at_reset, "handle_DISCONNECT": self._at_end}
        return asked

    @property
    def status(self) -> PeerStatus:
        """What is known of the milter."""
        sessions, outage = self._sessions, self.outage
        busy = sessions.connections - sessions.waiting
        return PeerStatus(sessions.connections, busy, 0, outage.since, outage.reason)

    def check(self) -> None:
        """Warn if the milter is out of reach, or speaks no milter protocol; blocks."""
        reason = f"no answer in {LOOK_SECONDS:g} s"
        try:
            look_in_thread(self._look)
        except MilterDownError as error:
            reason = str(error)
        except TimeoutError:
            pass
        else:
            return
        text = "%s cannot be asked: %s; when-down=%s until it can"
        self.log.warning(text, self.program, printable(reason), self._when_down)

    async def _look(self) -> None:
        await Talk(self._target, 0, lambda: None).look()

    async def close(self) -> None:
        """End the connections, and write what was gathered for the log."""
        self._sessions.close()
        await super().close()

    # -- as the client speaks, with stages ---------------------------------------------------------

    async def _at_connect(self, server: Any, session: AnySession) -> Any:
        talk = self._sessions.of(server, session)
        await talk.client(server, session)
        refusal = self._refusal(session, talk)
        return _as_greeting(refusal) if refusal else MISSING

    async def _at_helo(self, server: Any, session: AnySession, _: Envelope, name: str) -> Any:
        return await self._at_greeting(server, session, name) or MISSING

    async def _at_ehlo(
        self, server: Any, session: AnySession, _: Envelope, name: str, responses: list[str]
    ) -> list[str]:
        refusal = await self._at_greeting(server, session, name)
        if refusal:
            return [refusal]
        session.host_name = name
        return responses

    async def _at_greeting(self, server: Any, session: AnySession, name: str) -> str:
        talk = self._sessions.of(server, session)
        await talk.hello(server, session, name)
        return self._refusal(session, talk)

    async def _at_sender(
        self, server: Any, session: AnySession, envelope: Envelope, address: str, options: list[str]
    ) -> Any:
        talk = self._sessions.of(server, session)
        talk.begin(envelope)
        mail = replace(Mail.of(server, session, envelope), sender=address.removeprefix("<>"))
        await talk.sender(server, session, mail)
        refusal = self._refusal(session, talk)
        if refusal:
            talk.begin(None)
        return refusal or MISSING

    async def _at_recipient(
        self, server: Any, session: AnySession, envelope: Envelope, address: str, options: list[str]
    ) -> Any:
        talk = self._talk_of(server, session, envelope)
        mail = self.mail_of(server, session, envelope)
        words = [option.partition("=") for option in options]
        parameters = {name: value if equals else True for name, equals, value in words}
        await talk.recipient(server, session, mail, Recipient(address, parameters))
        return self._refusal(session, talk) or talk.refused or MISSING

    async def _at_reset(self, _: Any, session: AnySession, __: Envelope) -> Any:
        talk = self._sessions.find(session)
        if talk is not None:
            talk.begin(None)
        return MISSING

    async def _at_end(self, _: Any, session: AnySession) -> None:
        self._sessions.end(session)

    def _refusal(self, session: AnySession, talk: Talk) -> str:
        """Return why a command is refused; empty if it is not."""
        if talk.down:
            return self.answer_down(session, talk.down)
        self.outage.end()
        verdict = talk.verdict
        return verdict.reply if verdict is not None and verdict.kind is Kind.REFUSE else ""

    # -- at the end of the message -----------------------------------------------------------------

    async def handle_DATA(self, server: Any, session: AnySession, envelope: Envelope) -> Any:
        """Refuse a message, change it, or leave it as it is to the next handler."""
        talk = self._talk_of(server, session, envelope)
        try:
            mail = self.mail_of(server, session, envelope)
            parts = Parts(mail.content)
            await talk.message(server, session, mail, parts)
            verdict, down, leading_space = talk.verdict, talk.down, talk.leading_space
        except HeaderTooLargeError:
            return HEADER_TOO_LARGE
        finally:
            self._sessions.keep(session)
        if verdict is None:
            return self.answer_down(session, down) or MISSING
        self.outage.end()
        if verdict.kind is Kind.REFUSE:
            return verdict.reply
        if verdict.kind is Kind.DISCARD:
            return self.discard(mail, "the milter discards it")
        if verdict.edits:
            refusal = await self.change(
                *(server, envelope, mail, parts, verdict.edits), leading_space=leading_space
            )
            if refusal:
                return refusal
        return self.pass_on(envelope, mail, verdict.quarantine)

    def _talk_of(self, server: Any, session: AnySession, envelope: Envelope) -> Talk:
        """Return the talk of a session, about this transaction."""
        talk = self._sessions.of(server, session)
        if talk.envelope is not envelope:
            talk.begin(envelope)
        return talk

    def _talk(self, server: Any, lost: Callable[[], object]) -> Talk:
        room = (getattr(server, "data_size_limit", None) or MOST_CHANGED) + CHANGES_BESIDES
        return Talk(self._target, room, lost)


def _as_greeting(refusal: str) -> str:
    """Return a refusal as it may stand in place of a greeting: 554 or 421 (RFC 5321 4.3.2)."""
    code = "421" if refusal[0] == "4" else "554"
    return f"{code}{refusal[3:]}"
