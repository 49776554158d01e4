"""Exchange: one AUTH of a client: its responses, and whom it claims to be."""

from __future__ import annotations

from base64 import b64decode
from binascii import Error as Base64Error
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from aiosmtpd.smtp import MISSING

from smtpd_fork.filters.auth.claimed_user import claimed_user, plain_parts, user_key
from smtpd_fork.filters.auth.outcome import NOT_BASE64, WRONG, RefusedError
from smtpd_fork.smtp.hooks import in_time

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Sequence

    from smtpd_fork.filters.auth.attempts import Share
    from smtpd_fork.filters.auth.failures import Failures
    from smtpd_fork.filters.auth.outcome import Outcome
    from smtpd_fork.hops.peer_status import PeerStatus

__all__ = ["Backend", "Exchange", "credentials"]

T = TypeVar("T")

USER_NAME, PASSWORD = b"Username:", b"Password:"
"""What LOGIN asks for, as other servers write it."""


class Exchange:
    """One AUTH. Make it with :meth:`begin`.

    :ivar server: the session, as handlers know it
    :ivar session: aiosmtpd's
    :ivar mechanism: in capitals
    :ivar initial: the response that came with the command; None: none did
    :ivar client: what the client is counted by; empty: it is not counted
    :ivar network: that the client is in; empty if it is not counted, or has no address
    :ivar user: whom it claims to be; empty as long as it has not said so
    :ivar limit_reached: whether the client may not fail again
    """

    def __init__(
        self, server: Any, mechanism: str, initial: bytes | None, failures: Failures, client: str
    ) -> None:
        self.server = server
        self.session = server.session
        self.mechanism = mechanism
        self.initial = initial
        self.client = client
        self.network = ""
        self.user = ""
        self.limit_reached = False
        self._failures = failures
        self._guess = b""
        self._responses: list[bytes] = []
        if initial:
            self._heard(initial)

    @classmethod
    def begin(cls, server: Any, args: Sequence[str], failures: Failures, client: str) -> Exchange:
        """Return the exchange that a command begins.

        :param args: of AUTH
        :raises RefusedError: the response with it is not base64
        """
        initial: bytes | None = None
        if len(args) > 1:
            try:
                # RFC 4954 4: an equals sign is an empty response
                initial = b"" if args[1] == "=" else b64decode(args[1].encode(), validate=True)
            except (Base64Error, UnicodeEncodeError):
                raise RefusedError(NOT_BASE64) from None
        return cls(server, args[0].upper(), initial, failures, client)

    async def ask(self, challenge: bytes) -> bytes:
        """Send a challenge, and return the response.

        :raises RefusedError: the client has given up, and has its reply
        """
        response = await self.server.challenge_auth(challenge)
        if response is MISSING:
            raise RefusedError("")
        self._heard(response)
        return bytes(response)

    def _heard(self, response: bytes) -> None:
        self._responses.append(response)
        if not self.user:
            self.user = claimed_user(self.mechanism, response)

    async def in_time(self, awaitable: Awaitable[T]) -> T:
        """Await what is no matter of the client: its own time does not pass meanwhile."""
        connection = getattr(self.server, "connection", None)
        if connection is None:  # under aiosmtpd
            return await awaitable
        return await in_time(connection, awaitable)  # type: ignore[no-any-return] # of a T

    @asynccontextmanager
    async def attempt(self, *, at_once: int) -> AsyncIterator[None]:
        """Wait until the client may make an attempt, and count it as long as it goes on.

        :raises RefusedError: the client, or the user, has failed too often
        """
        user = user_key(self.user)
        if self._share is not None:
            await self.in_time(self._failures.ask_for_login(self.client, user, self._share))
        async with self._failures.attempt(self.client, user, at_once=at_once):
            yield

    @property
    def _share(self) -> Share | None:
        """What tells all processes and nodes; None: there are none."""
        connection = getattr(self.server, "connection", None)  # None under aiosmtpd
        return None if connection is None else connection.shared.share_auth_attempt

    def failed(self) -> None:
        """Count the attempt as a guess, within :meth:`attempt`."""
        self._guess = _guess_of(self.mechanism, self._responses)
        user = user_key(self.user)
        self.limit_reached = self._failures.failed(self.client, user, self._guess)

    async def share_failure(self) -> None:
        """Have all processes and nodes count the guess, if it was one."""
        if self._share is not None and self._guess:
            user = user_key(self.user)
            sharing = self._failures.share(self.client, user, self._guess, self._share)
            self.limit_reached |= await self.in_time(sharing)

    async def succeeded(self, user: str) -> None:
        """Take note of who has authenticated."""
        await self.in_time(self._failures.succeeded(self.client, user_key(user), self._share))


def _guess_of(mechanism: str, responses: Sequence[bytes]) -> bytes:
    """Return what a client has guessed; it is the same by PLAIN and by LOGIN.

    A mail program that has an old password tries one after the other.
    """
    login = list(responses)
    if mechanism == "PLAIN" and len(login) == 1:
        login = login[0].split(b"\0")[1:]
    if mechanism in {"PLAIN", "LOGIN"} and len(login) == 2:  # noqa: PLR2004 - user and password
        return b"\n".join([b"PLAIN", str(len(login[0])).encode(), *login])
    return b"\n".join([mechanism.encode(), *responses])


class Backend(Protocol):
    """Decides who a client is."""

    @property
    def known(self) -> Sequence[str]:
        """The names of the mechanisms that it may have."""

    @property
    def status(self) -> PeerStatus | None:
        """The state of the program that it asks; None if it asks none."""

    async def offered(self, *, plaintext: bool) -> Sequence[str]:
        """Return the mechanisms that are on offer, in order.

        :param plaintext: those that show a password or a token among them
        """

    async def authenticate(self, exchange: Exchange) -> Outcome:
        """Carry out an exchange.

        :raises RefusedError: it ended early
        """

    async def close(self) -> None:
        """Finish."""


async def credentials(exchange: Exchange) -> tuple[str, bytes]:
    """Return the user and the password that a client gives by PLAIN or LOGIN.

    :raises RefusedError: it gives none, or wants to be somebody else than who it is
    """
    first = exchange.initial
    if exchange.mechanism == "LOGIN":
        name = await exchange.ask(USER_NAME) if first is None else first
        password = await exchange.ask(PASSWORD)
        try:
            return name.decode(), password
        except UnicodeDecodeError:
            raise RefusedError(WRONG, "the name is not UTF-8") from None
    parts = plain_parts(await exchange.ask(b"") if first is None else first)
    if parts is None:
        raise RefusedError(WRONG, "the response is not of PLAIN")
    authorization, user, password = parts
    if authorization and user_key(authorization) != user_key(user):
        raise RefusedError(WRONG, "another identity is asked for")
    return user, password
