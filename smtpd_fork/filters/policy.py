"""policy: asks a policy server of Postfix's, such as postgrey, policyd-spf or postfwd.

The server is asked about each recipient, or at other stages, over connections that requests share:
an idle session costs none. It answers with an action of access(5).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from aiosmtpd.smtp import MISSING, Envelope
from aiosmtpd.smtp import Session as AnySession

from smtpd_fork.dialogue.waiting import may_end_at_once
from smtpd_fork.filters.content_filter import ContentFilter, WhenDown
from smtpd_fork.filters.policy_action import DEFERRING, parse_action
from smtpd_fork.filters.policy_deferrals import Deferrals
from smtpd_fork.filters.policy_effects import PolicyEffects
from smtpd_fork.filters.policy_request import attributes
from smtpd_fork.filters.policy_server import PolicyServer
from smtpd_fork.filters.when_quarantined import WhenQuarantined  # noqa: TC001 - for the settings
from smtpd_fork.hops.errors import HopError
from smtpd_fork.hops.policy import request
from smtpd_fork.setting_types import Count, Seconds, SettingError, Text

if TYPE_CHECKING:
    from smtpd_fork.filters.provisional import Asked, Provisional
    from smtpd_fork.hops.peer_status import PeerStatus

__all__ = ["Policy"]

CONNECTIONS = 100
"""Postfix's default_process_limit; twice the sessions of a client (--max-from-ip), so that one
client whose requests take long does not have all of them."""

Stage: TypeAlias = Literal["connect", "helo", "mail", "rcpt", "data", "end-of-message"]

_AT_THE_END = {"data": "DATA", "end-of-message": "END-OF-MESSAGE"}
"""The stages at which the message has come; what the server learns of each."""


class Policy(ContentFilter):
    """Asks a policy server.

    :param address: ``unix:PATH`` or ``HOST:PORT``; several with spaces between them, which are
        tried in order
    :param stages: when it is asked: ``connect``, ``helo`` (EHLO as well), ``mail``, ``rcpt``,
        ``data`` or ``end-of-message``; the last two once the message has come
    :param when_down: what happens when the server is out of reach, too slow or broken: ``defer``
        (451), ``refuse`` (554) or ``accept``
    :param when_quarantined: what happens to messages that the server holds (HOLD): ``sink``, those
        with ``quarantine = true`` take them; ``defer`` (451), ``refuse`` (550), or ``mark``: they
        go on, with a field X-Quarantine; default: ``sink`` if there is one, else ``defer``
    :param connections: to the server at once; further requests wait
    :param timeout: seconds that an answer may take, with the wait for a connection
    :param policy_context: the attribute ``policy_context``, by which a server tells filters apart
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
        if self._stages & {"connect", "helo", "mail"}:  # their deferrals are of recipients
            vars(self).update(known["rcpt"])

    @property
    def status(self) -> PeerStatus:
        """What is known of the server."""
        return self._server.status(self.outage)

    def check(self) -> None:
        """Warn if the server cannot be reached; it may be started later."""
        self._server.look()

    async def close(self) -> None:
        """End the connections, and write what was gathered for the log."""
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
        """Refuse a message, or do with it what the server has said before."""
        self._deferrals.forget(session, envelope, "DATA")
        for stage, state in _AT_THE_END.items():
            if stage in self._stages:
                await asyncio.sleep(0)  # see may_end_at_once
                refusal = await self._refusal(server, session, envelope, state)
                if refusal := refusal or self._deferrals.of_message(envelope):
                    return refusal
        said = self._effects.of(envelope)
        if said is None:
            return MISSING
        mail = self.mail_of(server, session, envelope)
        if said.discarded is not None:
            return self.discard(mail, said.discarded)
        said.change(envelope)
        return self.pass_on(envelope, mail, said.held)

    def take_provisional(self, asked: Asked) -> Provisional | None:
        """Return what the server said with DEFER_IF_PERMIT or DEFER_IF_REJECT; see the base."""
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
        """Ask the server; return the reply that refuses, or nothing."""
        self._deferrals.forget(session, envelope, state)
        told = attributes(server, session, envelope, state, context=self._context, **more)
        try:
            text = await self._server.ask(request(told))
        except HopError as error:
            return self.answer_down(session, error.reason.removeprefix(f"{self._server}: "))
        action = parse_action(text)
        if action is None:
            return self.answer_down(session, f"an answer has no action: {text[:80]!r}")
        self.outage.end()
        self._effects.note(action, session, envelope, state)
        if action.name not in DEFERRING:
            return action.reply
        self._deferrals.note(action, session, envelope, state)
        return ""
