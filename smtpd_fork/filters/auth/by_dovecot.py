"""ByDovecot: all that Dovecot's authentication service decides, by the mechanisms that it has."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from smtpd_fork.filters.auth.claimed_user import LONGEST_USER
from smtpd_fork.filters.auth.outcome import (
    DENIED,
    DISABLED,
    EXPIRED,
    TEMPORARY,
    TOO_LONG,
    UNKNOWN_MECHANISM,
    WRONG,
    Outcome,
    RefusedError,
)
from smtpd_fork.gate.networks import number_of
from smtpd_fork.hops.dovecot.connection import DovecotDownError
from smtpd_fork.hops.dovecot.conversation import Kind, Mechanism
from smtpd_fork.hops.dovecot.service import RequestTooLongError
from smtpd_fork.peer_address import host_of
from smtpd_fork.sanitizer import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smtpd_fork.filters.auth.exchange import Exchange
    from smtpd_fork.hops.dovecot.conversation import Answer
    from smtpd_fork.hops.dovecot.service import DovecotRequest, DovecotService
    from smtpd_fork.hops.peer_status import PeerStatus

__all__ = ["ByDovecot", "outcome_of"]

_BEFORE_DOVECOT_WAS_SEEN = (Mechanism("PLAIN", plaintext=True), Mechanism("LOGIN", plaintext=True))
"""Offered as long as Dovecot was never reached. AUTH is answered 454 then, and a client tries
again; without an offer it would take the account for wrong."""

OFFER_SECONDS = 1.0
"""How long EHLO waits for a connection, which tells the mechanisms of now: not every client that
says EHLO wants to authenticate."""

_FAILURES = {
    "temp": TEMPORARY,
    "authz": DENIED,
    "user_disabled": DISABLED,
    "pass_expired": EXPIRED,
}
"""Dovecot's words for a failure that is no wrong guess."""


class ByDovecot:
    """Passes on what clients say, and what Dovecot answers."""

    known: Sequence[str] = (
        *("PLAIN", "LOGIN", "CRAM-MD5", "DIGEST-MD5", "SCRAM-SHA-1", "SCRAM-SHA-256"),
        *("OAUTHBEARER", "XOAUTH2", "GSSAPI", "GSS-SPNEGO", "NTLM", "OTP"),
    )
    """Not ANONYMOUS, by which anybody could relay, nor EXTERNAL, which is about certificates."""

    def __init__(self, service: DovecotService) -> None:
        self._service = service

    @property
    def status(self) -> PeerStatus | None:
        """The state of Dovecot."""
        return self._service.status

    async def offered(self, *, plaintext: bool) -> Sequence[str]:
        """Return what Dovecot has, in its order; what it had last, while it is out of reach."""
        with suppress(DovecotDownError, TimeoutError):  # AUTH says so
            async with asyncio.timeout(OFFER_SECONDS):
                await self._service.connection()
        return [
            each.name
            for each in self._service.mechanisms or _BEFORE_DOVECOT_WAS_SEEN
            if each.name in self.known and (plaintext or not each.plaintext)
        ]

    async def authenticate(self, exchange: Exchange) -> Outcome:
        """Pass on an exchange."""
        request: DovecotRequest | None = None
        try:
            request = await self._begun(exchange)
            while (answer := request.answer).kind is Kind.CONTINUE:
                response = await exchange.ask(answer.data)
                async with exchange.attempt(at_once=sys.maxsize):
                    await exchange.in_time(request.go_on(response))
                    _count(exchange, request.answer)
        except RequestTooLongError:
            return Outcome(reply=TOO_LONG)
        except DovecotDownError as error:
            request = None
            return Outcome(reply=TEMPORARY, reason=f"Dovecot {self._service.address}: {error}")
        finally:
            if request is not None:
                request.cancel()
        return outcome_of(answer)

    async def _begun(self, exchange: Exchange) -> DovecotRequest:
        parameters = _parameters(exchange.session)
        async with exchange.attempt(at_once=sys.maxsize):
            request = await exchange.in_time(
                self._service.begin(exchange.mechanism, parameters, exchange.initial)
            )
            if request is None:
                raise RefusedError(UNKNOWN_MECHANISM)
            _count(exchange, request.answer)
        return request

    async def close(self) -> None:
        """End the connection."""
        await self._service.close()


def _count(exchange: Exchange, answer: Answer) -> None:
    """Count a wrong guess."""
    if answer.kind is not Kind.FAIL:
        return
    exchange.user = exchange.user or answer.user[:LONGEST_USER]
    if outcome_of(answer).reply == WRONG:
        exchange.failed()


def outcome_of(answer: Answer) -> Outcome:
    """Return what Dovecot's last word means."""
    if answer.kind is Kind.OK:
        user = answer.user
        if user and len(user) <= LONGEST_USER and user.isprintable():
            return Outcome(user)
        return Outcome(reply=TEMPORARY, reason=f"Dovecot names the user {printable(user, 60)!r}")
    word = next((word for word in _FAILURES if answer.says(word)), "")
    reason = ", ".join(each for each in (word, answer.parameters.get("reason", "")) if each)
    return Outcome(reply=_FAILURES.get(word, WRONG), reason=printable(reason))


def _parameters(session: Any) -> dict[str, str]:
    """Return what Dovecot learns about a client."""
    parameters = {"service": "smtp", "nologin": ""}
    if identifier := getattr(session, "id", ""):
        parameters["session"] = identifier
    for name, address in (("l", getattr(session, "local", None)), ("r", session.peer)):
        host = host_of(address)
        if host is not None and number_of(host) is not None:  # Dovecot takes nothing else
            parameters[f"{name}ip"] = host
    if "rip" not in parameters:
        parameters["no-penalty"] = ""  # else one for all clients without an address
    if session.ssl is not None:
        parameters["secured"] = "tls"
        if getattr(session, "peer_certificate", None):
            parameters["valid-client-cert"] = ""
    return parameters
