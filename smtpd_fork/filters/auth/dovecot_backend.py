"""DovecotBackend: have Dovecot's authentication service verify credentials."""

from __future__ import annotations

import asyncio
import sys
from contextlib import contextmanager, suppress
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
    from collections.abc import Callable, Iterator, Sequence

    from smtpd_fork.filters.auth.exchange import Exchange
    from smtpd_fork.filters.request import Request
    from smtpd_fork.hops.dovecot.conversation import Answer
    from smtpd_fork.hops.dovecot.service import DovecotRequest, DovecotService
    from smtpd_fork.hops.peer_status import PeerStatus

__all__ = ["DovecotBackend", "outcome_of"]

_BEFORE_DOVECOT_WAS_SEEN = (Mechanism("PLAIN", plaintext=True), Mechanism("LOGIN", plaintext=True))
"""Mechanisms to offer until Dovecot was reached for the first time. AUTH gets 454 then, and clients
try again; without AUTH in the reply to EHLO they would report a wrong account."""

OFFER_SECONDS = 1.0
"""Seconds that EHLO waits for a connection to learn the current mechanisms. Short, because not
every client that sends EHLO wants to authenticate."""

_FAILURES = {
    "temp": TEMPORARY,
    "authz": DENIED,
    "user_disabled": DISABLED,
    "pass_expired": EXPIRED,
}
"""Dovecot's codes of failures that are not wrong credentials."""


class DovecotBackend:
    """Passes responses of clients to Dovecot, and its challenges and results to clients.

    :param request: counts a request: see :meth:`smtpd_fork.filters.Filter.request`
    """

    known: Sequence[str] = (
        *("PLAIN", "LOGIN", "CRAM-MD5", "DIGEST-MD5", "SCRAM-SHA-1", "SCRAM-SHA-256"),
        *("OAUTHBEARER", "XOAUTH2", "GSSAPI", "GSS-SPNEGO", "NTLM", "OTP"),
    )
    """Without ANONYMOUS, by which every client could relay, and EXTERNAL, which needs client
    certificates."""

    def __init__(self, service: DovecotService, request: Callable[[], Request]) -> None:
        self._service = service
        self._request = request

    @property
    def status(self) -> PeerStatus | None:
        """The state of Dovecot."""
        return self._service.status

    async def offered(self, *, plaintext: bool) -> Sequence[str]:
        """Return Dovecot's mechanisms in its order; the last known ones while it is unreachable."""
        with suppress(DovecotDownError, TimeoutError):  # AUTH will report it
            async with asyncio.timeout(OFFER_SECONDS):
                await self._service.connection()
        return [
            each.name
            for each in self._service.mechanisms or _BEFORE_DOVECOT_WAS_SEEN
            if each.name in self.known and (plaintext or not each.plaintext)
        ]

    async def authenticate(self, exchange: Exchange) -> Outcome:
        """Carry out an exchange with Dovecot."""
        request: DovecotRequest | None = None
        try:
            request = await self._begun(exchange)
            while (answer := request.answer).kind is Kind.CONTINUE:
                response = await exchange.ask(answer.data)
                async with exchange.attempt(at_once=sys.maxsize):
                    with self._counted() as counted:
                        await exchange.in_time(request.respond(response))
                        _note(counted, request.answer)
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
            beginning = self._service.begin(exchange.mechanism, parameters, exchange.initial)
            with self._counted() as counted:
                request = await exchange.in_time(beginning)
                if request is None:
                    raise RefusedError(UNKNOWN_MECHANISM)
                _note(counted, request.answer)
            _count(exchange, request.answer)
        return request

    @contextmanager
    def _counted(self) -> Iterator[Request]:
        """Count a request, unless it is refused before it is sent to Dovecot."""
        with self._request() as request:
            try:
                yield request
            except (RequestTooLongError, RefusedError):
                request.sent = False
                raise

    async def close(self) -> None:
        """Close the connection."""
        await self._service.close()


def _note(request: Request, answer: Answer) -> None:
    """Store the final answer of a request; a challenge is not counted."""
    request.sent = answer.kind is not Kind.CONTINUE
    request.answer = outcome_of(answer).reply if request.sent else ""


def _count(exchange: Exchange, answer: Answer) -> None:
    """Count an answer that says that the credentials are wrong."""
    if answer.kind is not Kind.FAIL:
        return
    exchange.user = exchange.user or answer.user[:LONGEST_USER]
    if outcome_of(answer).reply == WRONG:
        exchange.failed()


def outcome_of(answer: Answer) -> Outcome:
    """Return the outcome that Dovecot's final answer means."""
    if answer.kind is Kind.OK:
        user = answer.user
        if user and len(user) <= LONGEST_USER and user.isprintable():
            return Outcome(user)
        reason = f"Dovecot answers with the invalid user name {printable(user, 60)!r}"
        return Outcome(reply=TEMPORARY, reason=reason)
    word = next((word for word in _FAILURES if answer.has_code(word)), "")
    reason = ", ".join(each for each in (word, answer.parameters.get("reason", "")) if each)
    return Outcome(reply=_FAILURES.get(word, WRONG), reason=printable(reason))


def _parameters(session: Any) -> dict[str, str]:
    """Return the parameters of a request that describe the client."""
    parameters = {"service": "smtp", "nologin": ""}
    if identifier := getattr(session, "id", ""):
        parameters["session"] = identifier
    for name, address in (("l", getattr(session, "local", None)), ("r", session.peer)):
        host = host_of(address)
        if host is not None and number_of(host) is not None:  # Dovecot accepts only IP addresses
            parameters[f"{name}ip"] = host
    if "rip" not in parameters:
        # Otherwise all clients without an address share one penalty.
        parameters["no-penalty"] = ""
    if session.ssl is not None:
        parameters["secured"] = "tls"
        if getattr(session, "peer_certificate", None):
            parameters["valid-client-cert"] = ""
    return parameters
