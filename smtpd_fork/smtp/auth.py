"""AUTH (RFC 4954): PLAIN and LOGIN, and whatever a handler or a subclass adds."""

from __future__ import annotations

import inspect
import logging
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from typing import TYPE_CHECKING, Any

from aiosmtpd.smtp import MISSING, AuthResult, LoginPassword, syntax

from smtpd_fork.smtp.bdat import Chunking
from smtpd_fork.smtp.reply import answer_of

if TYPE_CHECKING:
    from smtpd_fork.smtp.work import Waiting

__all__ = ["Auth"]

MAX_FAILURES = 3
"""Failed attempts of one session; Postfix and others allow a few, and then no more."""

SUCCESS = "235 2.7.0 Authentication successful"
INVALID = "535 5.7.8 Authentication credentials invalid"


class Auth(Chunking):
    """The command AUTH, and what mechanisms need."""

    AuthLoginUsernameChallenge = "Username:"
    AuthLoginPasswordChallenge = "Password:"
    """What other servers send, and what strict clients wait for; aiosmtpd has words of its own."""

    _auth_failures = 0

    def _cmd_AUTH(self, arg: str | None) -> Waiting | None:
        if self._needs_hello("EHLO"):
            return None
        assert self.session is not None
        assert self.envelope is not None
        words = arg.split() if arg else []
        if not self.session.extended_smtp:
            self._say(500, "5.5.1", "Error: command 'AUTH' not recognized")
        elif self._auth_require_tls and not self._tls_protocol:
            self._put("538 5.7.11 Encryption required for requested authentication mechanism")
        elif self.session.authenticated:
            self._say(503, "5.5.1", "Already authenticated")
        elif self.envelope.mail_from:
            self._say(503, "5.5.1", "Error: AUTH within a mail transaction")
        elif not words:
            self._say(501, "5.5.4", "Not enough value")
        elif len(words) > 2:  # noqa: PLR2004 - mechanism and initial response
            self._say(501, "5.5.4", "Too many values")
        elif words[0].upper() not in self._setup.auth_names:
            self._put("504 5.5.4 Unrecognized authentication type")
        else:
            return self._authenticate_client([words[0].upper(), *words[1:]])
        return None

    async def _authenticate_client(self, words: list[str]) -> None:
        status = await self._call_handler_hook("AUTH", words)
        if status is MISSING:
            attribute, own = self._setup.auth_names[words[0]]
            method = getattr(self if own else self.event_handler, attribute)
            self._answered = False
            status = self._judge_auth(await method(self, words))
            if self._answered:
                status = None  # by the mechanism, or by challenge_auth(): the client has its reply
            elif status is None:
                status = INVALID  # a client without a reply would wait for one
        if status is not None:
            self._put(status)
        assert self.session is not None
        if not self.session.authenticated:
            self._auth_failures += 1
            if self._auth_failures >= MAX_FAILURES:
                self._report(logging.INFO, "too many failed attempts to authenticate")
                self._put(f"421 4.7.0 {self.hostname} Too many failed attempts to authenticate")

    def _judge_auth(self, result: Any) -> str | None:
        """Return what to answer to a mechanism's result, or None if it has answered itself."""
        assert self.session is not None
        if isinstance(result, AuthResult):
            # Before anything is changed: what cannot be sent counts as raised.
            message = answer_of("AUTH", result.message) if result.message else None
            if message and (message[0] == "2") is not result.success:
                raise ValueError(f"AuthResult(success={result.success}) with message {message!r}")
            if result.success:
                self.session.authenticated = True
                self.session.auth_data = result.auth_data
                self.session._login_data = getattr(result.auth_data, "login", None)  # noqa: SLF001 - its setter warns
                return message or SUCCESS
            return None if result.handled else message or INVALID
        # aiosmtpd's old way: None has answered, MISSING and False refuse, all else is who it is
        if result is None:
            return None
        if result is MISSING or result is False:
            return INVALID
        self.session._login_data = result  # noqa: SLF001 - as above
        self.session.authenticated = True
        return SUCCESS

    # -- what mechanisms need --------------------------------------------------------------------

    async def challenge_auth(
        self,
        challenge: str | bytes,
        encode_to_b64: bool = True,
        log_client_response: bool = False,
    ) -> Any:
        """Send a challenge; return what the client answers, decoded, or MISSING.

        :param challenge: without the code 334, which is put in front of it
        :param encode_to_b64: False if it is encoded already
        :param log_client_response: not honoured: credentials are in no log
        """
        raw = challenge.encode() if isinstance(challenge, str) else challenge
        # The space is mandatory, also before an empty challenge (RFC 4954 4).
        await self.push(b"334 " + (b64encode(raw) if encode_to_b64 else raw))
        line = await self._next_line()
        if line is None or line.strip() == b"*":
            await self.push("501 5.7.0 Auth aborted")
            return MISSING
        try:
            return b64decode(line.strip(), validate=True)
        except Base64Error:
            await self.push("501 5.5.2 Can't decode base64")
            return MISSING

    async def _next_line(self) -> bytes | None:
        """Return the client's next line, or None for one that is none."""
        # For the whole line: no byte of it gives the client more time.
        self.idle_since = now = self.loop.time()
        self.deadline = self._soonest(now + self._setup.limits.command_seconds)
        if self._shutting_down and not self._closing:
            self._put_raw(self._goodbye())  # the stop does not wait for the client
            self._close()
        event = await self._next_event()
        self._answered = False
        return event if isinstance(event, bytes) else None

    async def _check(self, mechanism: str, data: LoginPassword) -> AuthResult:
        """Ask the authenticator; it may be a function, or a coroutine function."""
        result: Any = self._authenticate(mechanism, data)
        if inspect.isawaitable(result):
            self._in_hook = True  # it has a handler's time, and a handler's end
            self.deadline = self.loop.time() + self._setup.limits.handler_seconds
            try:
                result = await result
            finally:
                self._in_hook = False
        return result  # type: ignore[no-any-return]  # the authenticator's

    def _authenticate(self, mechanism: str, auth_data: Any) -> Any:
        assert self.session is not None
        assert self.envelope is not None
        if self._authenticator is not None:
            return self._authenticator(self, self.session, self.envelope, mechanism, auth_data)
        if self._auth_callback is None:
            return AuthResult(success=False, handled=False)
        return self._ask_callback(self._auth_callback(mechanism, *auth_data), auth_data)

    @staticmethod
    def _ask_callback(answer: object, auth_data: Any) -> AuthResult:
        if answer:
            return AuthResult(success=True, handled=True, auth_data=auth_data)
        return AuthResult(success=False, handled=False)

    async def _initial(self, words: list[str], challenge: str) -> Any:
        """Return the first response: given with the command, or asked for."""
        if len(words) == 1:
            return await self.challenge_auth(challenge)
        if words[1] == "=":  # RFC 4954 4: an empty initial response
            return b""
        try:
            return b64decode(words[1].encode(), validate=True)
        except (Base64Error, UnicodeEncodeError):
            await self.push("501 5.5.2 Can't decode base64")
            return MISSING

    async def auth_PLAIN(self, _: Any, args: list[str]) -> AuthResult:
        """Authenticate by RFC 4616."""
        response = await self._initial(args, "")
        if response is MISSING:
            return AuthResult(success=False)
        try:
            _, login, password = response.split(b"\x00")
        except ValueError:
            await self.push("501 5.5.2 Can't split auth value")
            return AuthResult(success=False)
        return await self._check("PLAIN", LoginPassword(login, password))

    async def auth_LOGIN(self, _: Any, args: list[str]) -> AuthResult:
        """Authenticate as old clients do: a name, then a password."""
        login = await self._initial(args, self.AuthLoginUsernameChallenge)
        if login is MISSING:
            return AuthResult(success=False)
        password = await self.challenge_auth(self.AuthLoginPasswordChallenge)
        if password is MISSING:
            return AuthResult(success=False)
        return await self._check("LOGIN", LoginPassword(login, password))

    @syntax("AUTH <mechanism>")
    async def smtp_AUTH(self, arg: str | None) -> None:
        """Authenticate the client (RFC 4954)."""
        await self._settle(self._cmd_AUTH(arg))
