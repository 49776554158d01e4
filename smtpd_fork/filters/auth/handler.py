"""auth: authenticate clients (AUTH, RFC 4954).

A backend verifies the credentials: a file of users, Dovecot, or a Python function. All three have
the same limits of failed attempts.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from aiosmtpd.smtp import MISSING, AuthResult, Envelope
from aiosmtpd.smtp import Session as AnySession

from smtpd_fork.config import IPV6_PREFIX
from smtpd_fork.dialogue.auth_offer import with_mechanisms
from smtpd_fork.errors import HandlerError
from smtpd_fork.filters.auth.authenticator_backend import AuthenticatorBackend, function_named
from smtpd_fork.filters.auth.dovecot_backend import DovecotBackend
from smtpd_fork.filters.auth.exchange import Backend, Exchange
from smtpd_fork.filters.auth.failures import Failures
from smtpd_fork.filters.auth.outcome import (
    NEEDS_AUTH,
    NEEDS_TLS,
    UNKNOWN_MECHANISM,
    Outcome,
    RefusedError,
)
from smtpd_fork.filters.auth.password_hash import check_libraries
from smtpd_fork.filters.auth.users_file import Users, UsersFile
from smtpd_fork.filters.auth.users_file_backend import UsersFileBackend
from smtpd_fork.filters.base import Filter
from smtpd_fork.gate import ClientLine, client_reporter
from smtpd_fork.gate.client import Client
from smtpd_fork.gate.networks import Prefix
from smtpd_fork.hops.address import parse_hop_address
from smtpd_fork.hops.dovecot.service import DovecotService
from smtpd_fork.sanitizer import printable
from smtpd_fork.setting_types import (
    CountOrZero,
    FilePath,
    Seconds,
    SecondsOrZero,
    SettingError,
    Text,
)

if TYPE_CHECKING:
    from smtpd_fork.hops.peer_status import PeerStatus

__all__ = ["Auth"]

log = logging.getLogger("smtpd_fork.auth")

LONGEST_SHOWN = 100
"""Maximum characters of a user name in the log."""

_IPV4_NETWORK, _IPV6_NETWORK = Prefix.parse("24"), Prefix.parse("48")
"""Networks of a size that a provider assigns to one customer."""

DENIED_FOR = "Too many failed attempts to authenticate"


class Auth(Filter):
    """Authenticates clients by one of *users*, *dovecot* and *authenticator*.

    :param users: a file of users and hashes of their passwords
    :param dovecot: Dovecot's authentication service: ``unix:PATH`` or ``HOST:PORT``
    :param authenticator: a function like aiosmtpd's ``authenticator``, or its name ``module:attr``
    :param required: whether MAIL is refused before the client has authenticated
    :param require_tls: mechanisms that need an encrypted connection: ``always``: all of them;
        ``plaintext``: those that reveal the password; ``never``: none
    :param max_failures: failures of one client within *failure_period*; more get 421. 0 is no limit
    :param max_user_failures: failures of one user within *failure_period*; more get 454, except
        from clients that have authenticated as this user before. 0 is no limit
    :param failure_period: seconds that a failure counts
    :param deny: seconds for which the gate refuses a client that has reached *max_failures*; 0:
        it is not refused
    :param connect_timeout: timeout of connecting to Dovecot, in seconds
    :param timeout: timeout of an answer of Dovecot, in seconds
    """

    supports_dsn = True
    supports_binarymime = True
    gives_marks = False

    def __init__(
        self,
        users: FilePath | None = None,
        *,
        dovecot: Text | None = None,
        authenticator: Text | Callable[..., Any] | None = None,
        required: bool = False,
        require_tls: Literal["always", "plaintext", "never"] = "always",
        max_failures: CountOrZero = 10,
        max_user_failures: CountOrZero = 50,
        failure_period: Seconds = 600.0,
        deny: SecondsOrZero = 0.0,
        connect_timeout: Seconds = 5.0,
        timeout: Seconds = 60.0,
    ) -> None:
        if sum(each is not None for each in (users, dovecot, authenticator)) != 1:
            raise HandlerError("exactly one of users, dovecot and authenticator is required")
        self._file: UsersFile | None = None
        self._backend: Backend
        if users is not None:
            check_libraries()
            self._file, self._backend = UsersFile(users), UsersFileBackend()
        elif dovecot is not None:
            service = _service(dovecot, connect_timeout, timeout)
            self._backend = DovecotBackend(service, self.request)
            self.handle_EHLO = self._offer
        else:
            assert authenticator is not None
            if isinstance(authenticator, str):
                authenticator = function_named(authenticator)
            self._backend = AuthenticatorBackend(authenticator)
        for name in self._backend.known:
            setattr(self, f"auth_{name.replace('-', '__')}", self._authenticate)
        if required:
            self.handle_MAIL = self._require_authentication
        self.controls_relaying = required
        self.offers_auth_without_tls = require_tls != "always"
        self._require_tls = require_tls
        self._failures = Failures(max_failures, max_user_failures, failure_period, time.monotonic)
        self._deny = deny
        self._signature: tuple[int, ...] = ()
        self._reporter = client_reporter()

    def __repr__(self) -> str:
        return f"<Auth {type(self._backend).__name__}>"

    @property
    def status(self) -> PeerStatus | None:
        """The state of Dovecot; None without it."""
        return self._backend.status

    # -- the file of users -------------------------------------------------------------------------

    def check(self) -> None:
        """Check that the file of users can be read.

        :raises HandlerError: it cannot be read
        """
        self._read()

    def prepare(self) -> None:
        """Read the file, unless it has been read before.

        :raises HandlerError: it cannot be read
        """
        if self._file is not None and not self._signature:
            log.info("auth: %s", self._use(*self._read()))

    def on_reload(self) -> Callable[[], str] | None:
        """Read the file again if it has changed; see the base class.

        :raises HandlerError: it cannot be read
        """
        if self._file is None or self._signature == self._file.signature:
            return None
        return partial(self._use, *self._read())

    def _read(self) -> tuple[tuple[int, ...], Users | None]:
        if self._file is None:
            return (), None
        # Taken before reading, so that the next reload reads a file that changes meanwhile.
        signature = self._file.signature
        users = self._file.read_users()
        for fault in users.faults:
            log.warning("%s", fault)
        return signature, users

    def _use(self, signature: tuple[int, ...], users: Users | None) -> str:
        """Apply the content of the file; return the log line."""
        assert self._file is not None
        assert isinstance(self._backend, UsersFileBackend)
        assert users is not None
        self._signature, self._backend.users = signature, users
        return f"{self._file.name} read: users={len(users)}"

    # -- sessions ----------------------------------------------------------------------------------

    async def _offer(
        self, server: Any, session: AnySession, _: Envelope, hostname: str, responses: list[str]
    ) -> list[str]:
        """Add the mechanisms that Dovecot offers now to the reply to EHLO."""
        session.host_name = hostname
        offered = await self._backend.offered(plaintext=self._may_be_plaintext(session))
        return with_mechanisms(responses, set(self._backend.known), offered)

    def _may_be_plaintext(self, session: AnySession) -> bool:
        return self._require_tls == "never" or session.ssl is not None

    async def _require_authentication(
        self, _: Any, session: AnySession, __: Envelope, address: str, options: list[str]
    ) -> Any:
        return MISSING if session.authenticated else NEEDS_AUTH

    async def _authenticate(self, server: Any, args: Sequence[str]) -> AuthResult:
        """Carry out AUTH with any mechanism."""
        session = server.session
        self.prepare()  # aiosmtpd does not call it
        client = Client(session.peer, IPV6_PREFIX)
        try:
            await self._check_offered(session, args[0].upper())
            counted = "" if getattr(server, "exempt", False) else client.key or ""
            exchange = Exchange.begin(server, args, self._failures, counted)
            exchange.network = _network_of(client) if counted else ""
        except RefusedError as refused:
            return AuthResult(success=False, handled=False, message=refused.reply)
        outcome = await self._outcome(exchange)
        await exchange.share_failure()
        session.auth_user = printable(outcome.user or exchange.user, LONGEST_SHOWN)
        if exchange.limit_reached and self._deny:
            self._deny_client(server, client)
        if outcome.user:
            await exchange.succeeded(outcome.user)
            self._note(exchange, logging.INFO, "authenticated", f"mechanism={exchange.mechanism}")
            data = outcome.user if outcome.data is None else outcome.data
            return AuthResult(success=True, auth_data=data)
        if outcome.reason:
            self._note(exchange, logging.WARNING, "not authenticated", outcome.reason)
        # Without a text the reply was already sent.
        return AuthResult(success=False, handled=not outcome.reply, message=outcome.reply or None)

    async def _check_offered(self, session: AnySession, mechanism: str) -> None:
        """Check that a mechanism is offered to this client.

        :raises RefusedError: the mechanism is unknown, or needs TLS
        """
        plaintext = self._may_be_plaintext(session)
        if mechanism in await self._backend.offered(plaintext=plaintext):
            return
        hidden = not plaintext and mechanism in await self._backend.offered(plaintext=True)
        raise RefusedError(NEEDS_TLS if hidden else UNKNOWN_MECHANISM)

    async def _outcome(self, exchange: Exchange) -> Outcome:
        try:
            return await self._backend.authenticate(exchange)
        except RefusedError as refused:
            return Outcome(reply=refused.reply, reason=refused.reason)

    def _deny_client(self, server: Any, client: Client) -> None:
        """Have the gate refuse new connections of the client."""
        deny = getattr(server, "deny", None)
        if deny is None or not client.key or client.number is None:
            return
        if getattr(server, "speaks_for_others", False):
            log.warning("auth: %s is not denied: it sends for other clients (XCLIENT)", client.key)
            return
        try:
            deny(client.key, DENIED_FOR, seconds=self._deny, by="auth")
        except (RuntimeError, ValueError) as error:  # not a session of Server; too many denials
            log.warning("auth: %s is not denied: %s", client.key, error)

    # -- the log -----------------------------------------------------------------------------------

    def _note(self, exchange: Exchange, level: int, what: str, reason: str) -> None:
        session = exchange.session
        user = session.auth_user
        line = ClientLine.of(
            *(log, level, session.peer, what, f"user={user} {reason}"),
            kind=user, session=getattr(session, "id", ""), user=user,
        )  # fmt: skip
        self._reporter.note(line)

    async def close(self) -> None:
        """Stop the threads, close the connections, and write the pending log lines."""
        await self._backend.close()
        self._reporter.close()


def _network_of(client: Client) -> str:
    """Return the /24 or /48 network of a client; empty if it has no address."""
    if client.number is None:
        return ""
    return (_IPV6_NETWORK if client.ipv6 else _IPV4_NETWORK).network_of(client.number)


def _service(address: str, connect: float, answer: float) -> DovecotService:
    """Return Dovecot's authentication service at an address.

    :raises SettingError: the address is not valid
    """
    try:
        parsed = parse_hop_address(address, default_port=None)
    except SettingError as error:
        reason = "write unix:PATH or HOST:PORT"
        raise SettingError("dovecot", error.value, reason) from None
    return DovecotService(parsed, connect_seconds=connect, answer_seconds=answer)
