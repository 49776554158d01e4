"""milter: have a milter check each message, for example OpenDKIM, clamav-milter or rspamd.

By default the milter gets all events at the end of the message, so that an idle session needs no
connection to it. With ``stages`` it gets the client, its greeting, the sender and each recipient as
they arrive, and can refuse them immediately. The later handlers, including other milters, get the
message with the milter's changes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import contextmanager
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
from smtpd_fork.filters.milter_session import MilterSession, MilterTarget
from smtpd_fork.filters.milter_sessions import MilterSessions
from smtpd_fork.filters.when_quarantined import WhenQuarantined  # noqa: TC001 - for the settings
from smtpd_fork.hops.milter.connection import MilterDownError
from smtpd_fork.hops.milter.edited import HeaderTooLargeError, Parts
from smtpd_fork.hops.milter.verdict import Kind
from smtpd_fork.hops.peer_status import PeerStatus
from smtpd_fork.hops.probe import PROBE_SECONDS, probe_in_thread
from smtpd_fork.message import Mail, Recipient
from smtpd_fork.sanitizer import printable
from smtpd_fork.setting_types import Seconds, SettingError, Text

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from smtpd_fork.filters.request import Request

__all__ = ["Milter"]

log = logging.getLogger("smtpd_fork.milter")

LONGEST_FIELD = 1 << 16
"""Bytes of a header field: libmilter closes the connection at an event of more than 65,535 bytes
(MILTER_MAX_DATA_SIZE). Postfix would cut the field, also in the message that it delivers."""

MOST_CHANGED = 33_554_432
"""Bytes that a milter may change if messages have no maximum size; aiosmtpd's default limit."""


class Milter(ContentFilter):
    """Has a milter check each message.

    :param address: ``unix:PATH``, ``HOST:PORT`` or ``inet:PORT@HOST``
    :param stages: when the milter is asked: always at the end of the message (``data``); also when
        a client connects (``connect``), and at its commands (``helo``, ``mail``, ``rcpt``)
    :param when_down: what happens to messages when the milter is unreachable, too slow or broken:
        ``defer`` (451), ``refuse`` (554) or ``accept``
    :param when_quarantined: what happens to messages that the milter quarantines: ``sink`` delivers
        them to the sinks with ``quarantine = true``, with a field X-Quarantine; ``mark`` passes
        them on with this field; ``defer`` (451), ``refuse`` (550); default: ``sink`` if there is
        such a sink, otherwise ``defer``
    :param connect_timeout: timeout of connecting, in seconds
    :param timeout: timeout of an answer, in seconds; each progress message of the milter extends it
    :param total_timeout: timeout of all answers to a command or a message together, in seconds
    :param daemon_name: the macro ``{daemon_name}``, by which some milters distinguish servers, and
        which rspamd uses as the name in Authentication-Results; default: the name of this server
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
        self._sessions = MilterSessions(self._new_session, live=bool(asked))
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
        """The state of the milter and of the connections to it."""
        sessions, outage = self._sessions, self.outage
        busy = sessions.connections - sessions.waiting
        return PeerStatus(sessions.connections, busy, 0, outage.since, outage.reason)

    def check(self) -> None:
        """Log a warning if the milter is unreachable or breaks the protocol; blocks."""
        reason = f"no answer within {PROBE_SECONDS:g} s"
        try:
            probe_in_thread(self._probe)
        except MilterDownError as error:
            reason = str(error)
        except TimeoutError:
            pass
        else:
            return
        text = "%s is not available: %s; when-down=%s until it is"
        self.log.warning(text, self.program, printable(reason), self._when_down)

    async def _probe(self) -> None:
        await MilterSession(self._target, 0, lambda: None).probe()

    async def close(self) -> None:
        """Close the connections, and write the pending log lines."""
        self._sessions.close()
        await super().close()

    # -- the stages before the message -------------------------------------------------------------

    async def _at_connect(self, server: Any, session: AnySession) -> Any:
        milter_session = self._sessions.of(server, session)
        sending = milter_session.client(server, session)
        refusal = await self._refusal(session, milter_session, sending)
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
        milter_session = self._sessions.of(server, session)
        sending = milter_session.hello(server, session, name)
        return await self._refusal(session, milter_session, sending)

    async def _at_sender(
        self, server: Any, session: AnySession, envelope: Envelope, address: str, options: list[str]
    ) -> Any:
        milter_session = self._sessions.of(server, session)
        milter_session.begin(envelope)
        mail = replace(Mail.of(server, session, envelope), sender=address.removeprefix("<>"))
        sending = milter_session.sender(server, session, mail)
        refusal = await self._refusal(session, milter_session, sending)
        if refusal:
            milter_session.begin(None)
        return refusal or MISSING

    async def _at_recipient(
        self, server: Any, session: AnySession, envelope: Envelope, address: str, options: list[str]
    ) -> Any:
        milter_session = self._session_of(server, session, envelope)
        mail = self.mail_of(server, session, envelope)
        words = [option.partition("=") for option in options]
        parameters = {name: value if equals else True for name, equals, value in words}
        sending = milter_session.recipient(server, session, mail, Recipient(address, parameters))
        return await self._refusal(session, milter_session, sending) or MISSING

    async def _at_reset(self, _: Any, session: AnySession, __: Envelope) -> Any:
        milter_session = self._sessions.find(session)
        if milter_session is not None:
            milter_session.begin(None)
        return MISSING

    async def _at_end(self, _: Any, session: AnySession) -> None:
        self._sessions.end(session)

    async def _refusal(
        self, session: AnySession, milter_session: MilterSession, sending: Awaitable[None]
    ) -> str:
        """Send events to the milter; return the reply that refuses a command, or an empty string.

        :param sending: the coroutine that sends them
        """
        with self._request(milter_session) as request:
            await sending
            request.answer = self._answer_to_command(session, milter_session)
        return str(request.answer)

    def _answer_to_command(self, session: AnySession, milter_session: MilterSession) -> str:
        if milter_session.down:
            return self.answer_down(session, milter_session.down)
        self.outage.end()
        verdict = milter_session.verdict
        if verdict is not None and verdict.kind is Kind.REFUSE:
            return verdict.reply
        return milter_session.refused

    @contextmanager
    def _request(self, milter_session: MilterSession) -> Iterator[Request]:
        """Count a request if an event is sent to the milter."""
        milter_session.asked = False
        with self.request() as request:
            try:
                yield request
            finally:
                request.sent = milter_session.asked

    # -- at the end of the message -----------------------------------------------------------------

    async def handle_DATA(self, server: Any, session: AnySession, envelope: Envelope) -> Any:
        """Refuse a message, change it, or pass it to the next handler unchanged."""
        milter_session = self._session_of(server, session, envelope)
        with self._request(milter_session) as request:
            request.answer = await self._answer(server, session, envelope, milter_session)
        return request.answer

    async def _answer(
        self,
        server: Any,
        session: AnySession,
        envelope: Envelope,
        milter_session: MilterSession,
    ) -> Any:
        """Send a message to the milter, and apply its verdict; return the answer of the hook."""
        try:
            mail = self.mail_of(server, session, envelope)
            parts = Parts(mail.content, longest_field=LONGEST_FIELD)
            await milter_session.message(server, session, mail, parts)
            verdict, down, leading_space = (
                milter_session.verdict,
                milter_session.down,
                milter_session.leading_space,
            )
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
            return self.discard(mail, "by the milter")
        if verdict.edits:
            refusal = await self.change(
                *(server, envelope, mail, parts, verdict.edits), leading_space=leading_space
            )
            if refusal:
                return refusal
        return await self.pass_on(envelope, mail, verdict.quarantine)

    def _session_of(self, server: Any, session: AnySession, envelope: Envelope) -> MilterSession:
        """Return the milter session of a client's session, with this transaction begun."""
        milter_session = self._sessions.of(server, session)
        if milter_session.envelope is not envelope:
            milter_session.begin(envelope)
        return milter_session

    def _new_session(self, server: Any, lost: Callable[[], object]) -> MilterSession:
        room = (getattr(server, "data_size_limit", None) or MOST_CHANGED) + CHANGES_BESIDES
        return MilterSession(self._target, room, lost)


def _as_greeting(refusal: str) -> str:
    """Return a refusal with a code that may replace the greeting: 554 or 421 (RFC 5321 4.3.2)."""
    code = "421" if refusal[0] == "4" else "554"
    return f"{code}{refusal[3:]}"
