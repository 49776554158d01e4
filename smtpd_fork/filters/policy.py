"""policy: ask a policy server (Postfix's policy delegation), such as postgrey or policyd-spf.

The server is asked about each recipient, or at other stages. All sessions share a pool of
connections, so that an idle session needs no connection. The server answers with an action of
Postfix's access(5).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from aiosmtpd.smtp import MISSING, Envelope
from aiosmtpd.smtp import Session as AnySession

from smtpd_fork.dialogue.waiting import may_end_at_once
from smtpd_fork.filters.content_filter import ContentFilter, WhenDown, in_thread_if_large
from smtpd_fork.filters.policy_action import DEFERRING, Action, parse_action
from smtpd_fork.filters.policy_deferrals import Deferrals
from smtpd_fork.filters.policy_effects import PolicyEffects
from smtpd_fork.filters.policy_request import attributes
from smtpd_fork.filters.policy_server import PolicyServer
from smtpd_fork.filters.when_quarantined import WhenQuarantined  # noqa: TC001 - for the settings
from smtpd_fork.hops.errors import HopError
from smtpd_fork.hops.policy import encode_request
from smtpd_fork.setting_types import Count, Seconds, SettingError, Text

if TYPE_CHECKING:
    from smtpd_fork.filters.provisional import Asked, Provisional
    from smtpd_fork.hops.peer_status import PeerStatus

__all__ = ["Policy"]

CONNECTIONS = 100
"""Postfix's default_process_limit, and twice the default of --max-from-ip: a single client whose
requests take long cannot occupy all connections."""

Stage: TypeAlias = Literal["connect", "helo", "mail", "rcpt", "data", "end-of-message"]

_AT_THE_END = {"data": "DATA", "end-of-message": "END-OF-MESSAGE"}
"""The stages after the message was received, with the protocol_state of their requests."""


class Policy(ContentFilter):
    """Asks a policy server.

    :param address: ``unix:PATH`` or ``HOST:PORT``; several are separated by spaces, and tried in
        order
    :param stages: when the server is asked: ``connect``, ``helo`` (also at EHLO), ``mail``,
        ``rcpt``, ``data`` or ``end-of-message``; the last two after the message was received
    :param when_down: what happens when the server is unreachable, too slow or broken: ``defer``
        (451), ``refuse`` (554) or ``accept``
    :param when_quarantined: what happens to messages that the server holds (HOLD): ``sink``
        delivers them to the sinks with ``quarantine = true``; ``mark`` passes them on with a field
        X-Quarantine; ``defer`` (451), ``refuse`` (550); default: ``sink`` if there is such a sink,
        otherwise ``defer``
    :param connections: maximum connections to the server; further requests wait
    :param timeout: timeout of an answer in seconds, including the wait for a connection
    :param policy_context: the attribute ``policy_context``, by which a server distinguishes filters
    """

    log = logging.getLogger("smtpd_fork.policy")

    def __init__(
        self,
        address: Text,
        *,
        stages: Sequence[Stage] = ("rcpt",),
        when_down: WhenDown = "defer",
        when_quarantined: WhenQuarantined | None = None,
        connections: Count = CONNECTIONS,
        timeout: Seconds = 60.0,
        policy_context: str = "",
    ) -> None:
        self._server = PolicyServer(
            address, when_down=when_down, connections=connections, seconds=timeout
        )
        super().__init__(f"policy server {self._server}", when_down, when_quarantined)
        self._context = policy_context
        self._effects = PolicyEffects(self.program, self._reporter)
        self._deferrals = Deferrals(self.program)
        self._stages = set(stages)
        known: dict[str, dict[str, Any]] = {
            "connect": {"handle_CONNECT": self._at_connect},
            "helo": {"handle_EHLO": self._at_ehlo, "handle_HELO": self._at_helo},
            "mail": {"handle_MAIL": self._at_sender},
            "rcpt": {"handle_RCPT": self._at_recipient},
            **{stage: {} for stage in _AT_THE_END},
        }
        for stage in stages:
            if stage not in known:
                raise SettingError("stages", stage, f"the stages are {', '.join(known)}")
            vars(self).update(known[stage])
        if self._stages & {"connect", "helo", "mail"}:  # their deferrals are sent at RCPT
            vars(self).update(known["rcpt"])

    @property
    def status(self) -> PeerStatus:
        """The state of the server and of the connections to it."""
        return self._server.status(self.outage)

    def check(self) -> None:
        """Log a warning if the server is unreachable; it may be started later."""
        self._server.probe()

    async def close(self) -> None:
        """Close the connections, and write the pending log lines."""
        await super().close()
        await self._server.close()

    # -- the stages --------------------------------------------------------------------------------

    async def _at_connect(self, server: Any, session: AnySession) -> Any:
        return await self._refusal(server, session, None, "CONNECT") or MISSING

    async def _at_ehlo(
        self, server: Any, session: AnySession, envelope: Envelope, name: str, lines: list[str]
    ) -> Any:
        if refusal := await self._refusal(server, session, envelope, "EHLO", helo=name):
            return [refusal]
        session.host_name = name
        return lines

    async def _at_helo(
        self, server: Any, session: AnySession, envelope: Envelope, name: str
    ) -> Any:
        return await self._refusal(server, session, envelope, "HELO", helo=name) or MISSING

    async def _at_sender(
        self, server: Any, session: AnySession, envelope: Envelope, address: str, options: list[str]
    ) -> Any:
        return await self._refusal(server, session, envelope, "MAIL", sender=address) or MISSING

    async def _at_recipient(
        self, server: Any, session: AnySession, envelope: Envelope, address: str, options: list[str]
    ) -> Any:
        refusal = ""
        if "rcpt" in self._stages:
            refusal = await self._refusal(server, session, envelope, "RCPT", recipient=address)
        else:
            self._deferrals.forget(session, envelope, "RCPT")
        return refusal or self._deferrals.of_recipient(session, envelope) or MISSING

    @may_end_at_once
    async def handle_DATA(self, server: Any, session: AnySession, envelope: Envelope) -> Any:
        """Refuse a message, or apply the server's earlier actions to it."""
        self._deferrals.forget(session, envelope, "DATA")
        for stage, state in _AT_THE_END.items():
            if stage in self._stages:
                await asyncio.sleep(0)  # see may_end_at_once
                refusal = await self._refusal(server, session, envelope, state)
                if refusal := refusal or self._deferrals.of_message(envelope):
                    return refusal
        effects = self._effects.take(envelope)
        if effects is None:
            return MISSING
        mail = self.mail_of(server, session, envelope)
        if effects.discarded is not None:
            return self.discard(mail, effects.discarded)
        await in_thread_if_large(len(mail.content), effects.apply, envelope)
        return await self.pass_on(envelope, mail, effects.held)

    def take_provisional(self, asked: Asked) -> Provisional | None:
        """Return and remove the answer of DEFER_IF_PERMIT or DEFER_IF_REJECT; see the base."""
        return self._deferrals.take(asked)

    # -- the server --------------------------------------------------------------------------------

    async def _refusal(
        self,
        server: Any,
        session: AnySession,
        envelope: Envelope | None,
        state: str,
        **more: str,
    ) -> str:
        """Ask the server; return the reply that refuses, or an empty string."""
        self._deferrals.forget(session, envelope, state)
        sent = attributes(server, session, envelope, state, context=self._context, **more)
        with self.request() as asked:
            try:
                action = await self._action(encode_request(sent))
            except HopError as error:
                reason = error.reason.removeprefix(f"{self._server}: ")
                refusal = asked.answer = self.answer_down(session, reason)
                return refusal
            asked.answer = action.reply
        self.outage.end()
        self._effects.note(action, session, envelope, state)
        if action.name not in DEFERRING:
            return action.reply
        self._deferrals.note(action, session, envelope, state)
        return ""

    async def _action(self, question: bytes) -> Action:
        """Return the action in the server's answer.

        :raises HopError: the server does not answer, or its answer is not an action
        """
        text = await self._server.ask(question)
        action = parse_action(text)
        if action is None:
            raise HopError(f"an answer without a valid action: {text[:80]!r}")
        return action
