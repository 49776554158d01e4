"""Exchange: one AUTH command, with its challenges and responses."""

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
"""The challenges of LOGIN, in the spelling of other servers."""


class Exchange:
    """One AUTH command. Use :meth:`begin` to make it.

    :ivar server: the argument ``server`` of hooks
    :ivar session: aiosmtpd's session
    :ivar mechanism: the mechanism in upper case
    :ivar initial: the initial response; None if the client sent none
    :ivar client: the key by which failures of the client are counted; empty: they are not counted
    :ivar network: the network of the client; empty if it is not counted, or has no address
    :ivar user: the user name that the client claims; empty if it has not sent one yet
    :ivar limit_reached: whether the client has reached its limit of failures
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
            self._record(initial)

    @classmethod
    def begin(cls, server: Any, args: Sequence[str], failures: Failures, client: str) -> Exchange:
        """Return the exchange of a command.

        :param args: the arguments of AUTH
        :raises RefusedError: the initial response is not base64
        """
        initial: bytes | None = None
        if len(args) > 1:
            try:
                # An equals sign is an empty response (RFC 4954 4).
                initial = b"" if args[1] == "=" else b64decode(args[1].encode(), validate=True)
            except (Base64Error, UnicodeEncodeError):
                raise RefusedError(NOT_BASE64) from None
        return cls(server, args[0].upper(), initial, failures, client)

    async def ask(self, challenge: bytes) -> bytes:
        """Send a challenge, and return the response.

        :raises RefusedError: the client has cancelled the exchange; its reply was sent
        """
        response = await self.server.challenge_auth(challenge)
        if response is MISSING:
            raise RefusedError("")
        self._record(response)
        return bytes(response)

    def _record(self, response: bytes) -> None:
        self._responses.append(response)
        if not self.user:
            self.user = claimed_user(self.mechanism, response)

    async def in_time(self, awaitable: Awaitable[T]) -> T:
        """Await the work of a backend; the deadline of the client is suspended meanwhile."""
        connection = getattr(self.server, "connection", None)
        if connection is None:  # under aiosmtpd
            return await awaitable
        return await in_time(connection, awaitable)  # type: ignore[no-any-return] # of a T

    @asynccontextmanager
    async def attempt(self, *, at_once: int) -> AsyncIterator[None]:
        """Wait until the client may make an attempt, and count it while it is in progress.

        :raises RefusedError: the client or the user has too many failures
        """
        user = user_key(self.user)
        if self._share is not None:
            await self.in_time(self._failures.ask_for_login(self.client, user, self._share))
        async with self._failures.attempt(self.client, user, at_once=at_once):
            yield

    @property
    def _share(self) -> Share | None:
        """The function that shares attempts with all processes and nodes; None: there are none."""
        connection = getattr(self.server, "connection", None)  # None under aiosmtpd
        return None if connection is None else connection.shared.share_auth_attempt

    def failed(self) -> None:
        """Count the attempt as a failure; call it within :meth:`attempt`."""
        self._guess = _guess_of(self.mechanism, self._responses)
        user = user_key(self.user)
        self.limit_reached = self._failures.failed(self.client, user, self._guess)

    async def share_failure(self) -> None:
        """Count the failure, if the attempt was one, in all processes and nodes."""
        if self._share is not None and self._guess:
            user = user_key(self.user)
            sharing = self._failures.share(self.client, user, self._guess, self._share)
            self.limit_reached |= await self.in_time(sharing)

    async def succeeded(self, user: str) -> None:
        """Remember that the client has authenticated as *user*."""
        await self.in_time(self._failures.succeeded(self.client, user_key(user), self._share))


def _guess_of(mechanism: str, responses: Sequence[bytes]) -> bytes:
    """Return the credentials of an attempt; those of PLAIN and LOGIN are comparable.

    A mail program with an old password tries both mechanisms, which is to count as one failure.
    """
    login = list(responses)
    if mechanism == "PLAIN" and len(login) == 1:
        login = login[0].split(b"\0")[1:]
    if mechanism in {"PLAIN", "LOGIN"} and len(login) == 2:  # noqa: PLR2004 - user and password
        return b"\n".join([b"PLAIN", str(len(login[0])).encode(), *login])
    return b"\n".join([mechanism.encode(), *responses])


class Backend(Protocol):
    """Verifies credentials."""

    @property
    def known(self) -> Sequence[str]:
        """The names of all mechanisms that the backend may offer."""

    @property
    def status(self) -> PeerStatus | None:
        """The state of the external program that the backend uses; None if it uses none."""

    async def offered(self, *, plaintext: bool) -> Sequence[str]:
        """Return the mechanisms to offer, in order.

        :param plaintext: whether to include mechanisms that reveal a password or a token
        """

    async def authenticate(self, exchange: Exchange) -> Outcome:
        """Carry out an exchange.

        :raises RefusedError: it ended before the credentials were verified
        """

    async def close(self) -> None:
        """Release all resources."""


async def credentials(exchange: Exchange) -> tuple[str, bytes]:
    """Return the user and the password that a client sends by PLAIN or LOGIN.

    :raises RefusedError: the response is malformed, or asks for another authorization identity
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
        raise RefusedError(WRONG, "the response is not valid for PLAIN")
    authorization, user, password = parts
    if authorization and user_key(authorization) != user_key(user):
        raise RefusedError(WRONG, "the authorization identity is another user")
    return user, password
