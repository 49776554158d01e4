"""Mechanisms: AUTH PLAIN and LOGIN, and the methods for mechanisms of handlers and subclasses."""

from __future__ import annotations

import inspect
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from typing import Any

from aiosmtpd.smtp import MISSING, AuthResult, LoginPassword

from smtpd_fork.dialogue import replies
from smtpd_fork.dialogue.commands import State
from smtpd_fork.smtp.attributes import Attributes
from smtpd_fork.smtp.hooks import in_time

__all__ = ["Mechanisms"]


class Mechanisms(Attributes):
    """The methods of a session for authentication (RFC 4954)."""

    answered = False  # whether the running command has sent its reply

    AuthLoginUsernameChallenge = "Username:"
    AuthLoginPasswordChallenge = "Password:"
    """The usual challenges, which strict clients expect; those of aiosmtpd differ."""

    async def challenge_auth(
        self, challenge: str | bytes, encode_to_b64: bool = True, log_client_response: bool = False
    ) -> Any:
        """Send a challenge; return the decoded answer of the client, or MISSING.

        :param challenge: the text after the code 334
        :param encode_to_b64: False if it is encoded already
        :param log_client_response: ignored, as credentials are never logged
        """
        raw = challenge.encode() if isinstance(challenge, str) else challenge
        # The space is mandatory, also before an empty challenge (RFC 4954 4).
        await self.push(b"334 " + (b64encode(raw) if encode_to_b64 else raw))
        line = await self._next_line()
        if line is None or line.strip() == b"*":
            await self.push(replies.AUTH_ABORTED)
            return MISSING
        try:
            return b64decode(line.strip(), validate=True)
        except Base64Error:
            await self.push(replies.NOT_BASE64)
            return MISSING

    async def _next_line(self) -> bytes | None:
        """Return the client's next line, or None for an invalid line."""
        connection, dialogue = self.connection, self.connection.dialogue
        connection.wait_for_command()
        if dialogue.last_reply is not None and dialogue.state < State.LEAVING:
            dialogue.out += dialogue.last_reply  # a stop does not wait for the client's answer
            dialogue.leave()
            connection.flush()
        event = await dialogue.next_event()
        self.answered = False
        return event if isinstance(event, bytes) else None

    async def _check(self, mechanism: str, data: LoginPassword) -> AuthResult:
        """Call the authenticator, which may be a function or a coroutine function."""
        result: Any = self._authenticate(mechanism, data)
        if inspect.isawaitable(result):
            result = await in_time(self.connection, result)
        return result  # type: ignore[no-any-return]  # of the authenticator

    def _authenticate(self, mechanism: str, auth_data: Any) -> Any:
        dialogue, shared = self.connection.dialogue, self.connection.shared
        if shared.authenticator is not None:
            return shared.authenticator(
                self, dialogue.session, dialogue.envelope, mechanism, auth_data
            )
        accepted = shared.auth_callback and shared.auth_callback(mechanism, *auth_data)
        if accepted:
            return AuthResult(success=True, handled=True, auth_data=auth_data)
        return AuthResult(success=False, handled=False)

    async def _initial(self, words: list[str], challenge: str) -> Any:
        """Return the initial response, or request it with *challenge*."""
        if len(words) == 1:
            return await self.challenge_auth(challenge)
        if words[1] == "=":  # RFC 4954 4: an empty initial response
            return b""
        try:
            return b64decode(words[1].encode(), validate=True)
        except (Base64Error, UnicodeEncodeError):
            await self.push(replies.NOT_BASE64)
            return MISSING

    async def auth_PLAIN(self, _: Any, args: list[str]) -> AuthResult:
        """Authenticate by RFC 4616."""
        response = await self._initial(args, "")
        if response is MISSING:
            return AuthResult(success=False)
        try:
            _, login, password = response.split(b"\x00")
        except ValueError:
            await self.push(replies.NOT_SPLIT)
            return AuthResult(success=False)
        return await self._check("PLAIN", LoginPassword(login, password))

    async def auth_LOGIN(self, _: Any, args: list[str]) -> AuthResult:
        """Authenticate with the older mechanism LOGIN: a name, then a password."""
        login = await self._initial(args, self.AuthLoginUsernameChallenge)
        if login is MISSING:
            return AuthResult(success=False)
        password = await self.challenge_auth(self.AuthLoginPasswordChallenge)
        if password is MISSING:
            return AuthResult(success=False)
        return await self._check("LOGIN", LoginPassword(login, password))
