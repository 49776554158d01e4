"""Failures: limits of failed attempts to authenticate, across all sessions.

A failure is a guess at a password. The same credentials again are no other guess: a telephone with
an old password does not shut out all others behind its address. A client is counted by its IPv4
address or its /64 (IPv6). While an attempt goes on it counts as a failure, so that many sessions at
once guess no more often than one.

A user is counted as well, for guesses that come from many clients. Then only clients that have
authenticated as this user before go on; else a stranger could lock out everybody whose name is
known. Users who do not exist count alike: which names there are does not show.

The processes and nodes of a fleet count all of this together.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from smtpd_fork.filters.auth.attempts import Attempts
from smtpd_fork.filters.auth.outcome import TOO_MANY_FAILURES, USER_HAS_TOO_MANY, RefusedError
from smtpd_fork.fleet.auth_attempts import AuthCount

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from smtpd_fork.filters.auth.attempts import Share

__all__ = ["Failures"]

LOGIN_SECONDS = 30 * 86_400.0
"""For which a client is known that has authenticated as a user."""

LOGIN_TOLD_SECONDS = 86_400.0
"""After which it is counted again, and told to all nodes: not with each session."""


class _Turns:
    """The attempts of one client that go on, and those that wait for one of them to end."""

    __slots__ = ("running", "waiters")

    def __init__(self) -> None:
        self.running = 0
        self.waiters: deque[asyncio.Future[None]] = deque()

    async def wait(self) -> None:
        """Wait until an attempt has ended."""
        waiter = asyncio.get_running_loop().create_future()
        self.waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self.wake()  # its turn is another's
            raise

    def wake(self) -> None:
        """Have the next one who waits look again."""
        while self.waiters:
            waiter = self.waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return


class Failures:
    """The failed attempts of a time.

    :param of_client: failures of one client, after which it is refused; 0 is no limit
    :param of_user: failures of one user, after which other clients than the user's own are refused;
        0 is no limit
    :param seconds: how long a failure counts
    :param clock: tells the time
    """

    def __init__(
        self, of_client: int, of_user: int, seconds: float, clock: Callable[[], float]
    ) -> None:
        self._limits_clients, self._limits_users = of_client > 0, of_user > 0
        self._clock = clock
        self._clients = Attempts(AuthCount("client", of_client, seconds), clock)
        self._users = Attempts(AuthCount("user", of_user, seconds), clock)
        self._logins = Attempts(AuthCount("login", 1, LOGIN_SECONDS), clock)
        self._turns: dict[str, _Turns] = {}

    @asynccontextmanager
    async def attempt(self, client: str, user: str, *, at_once: int) -> AsyncIterator[None]:
        """Wait until the client may make an attempt, and count it as long as it goes on.

        :param client: what it is counted by; empty: it is not
        :param user: whom it claims to be; empty: that is not known
        :param at_once: attempts of one client that may go on at once
        :raises RefusedError: it has failed too often, or the user has
        """
        if self._is_stranger(client, user):
            raise RefusedError(USER_HAS_TOO_MANY, "too many failures of the user")
        if not client:
            yield
            return
        turns = self._turns.setdefault(client, _Turns())
        try:
            while turns.running >= min(at_once, self._left(client)):
                await turns.wait()
            turns.running += 1
            try:
                yield
            finally:
                turns.running -= 1
        finally:
            turns.wake()
            if not (turns.running or turns.waiters):
                self._turns.pop(client, None)

    def _left(self, client: str) -> int:
        """Return how often the client may fail yet.

        :raises RefusedError: never again
        """
        if not self._limits_clients:
            return sys.maxsize
        left = self._clients.left(client.encode())
        if left <= 0:
            raise RefusedError(TOO_MANY_FAILURES, "too many failures of the client")
        return left

    def _is_stranger(self, client: str, user: str) -> bool:
        """Whether the user has failed too often, and the client never was this user."""
        if not (self._limits_users and user) or self._users.left(_octets(user)) > 0:
            return False
        return not self._logins.of(_login(client, user))

    async def ask_for_login(self, client: str, user: str, share: Share) -> None:
        """Ask all nodes for a log-in of the client, if that decides whether it may go on."""
        if self._is_stranger(client, user):
            await self._logins.ask(_login(client, user), share)

    def failed(self, client: str, user: str, credentials: bytes) -> bool:
        """Count a guess.

        :param credentials: what was guessed; it is not kept
        :returns: whether the client has reached its limit with it
        """
        if user:
            self._users.add(_octets(user), credentials)
        return bool(client) and self._clients.add(client.encode(), credentials)

    async def share(self, client: str, user: str, credentials: bytes, share: Share) -> bool:
        """Have all nodes count a guess that was counted here, and count those at other nodes.

        :returns: whether the client has reached its limit with them
        """
        of_client = None
        async with asyncio.TaskGroup() as group:
            if client and self._limits_clients:
                sharing = self._clients.share(client.encode(), credentials, share)
                of_client = group.create_task(sharing)
            if user and self._limits_users:
                group.create_task(self._users.share(_octets(user), credentials, share))
        return of_client is not None and of_client.result()

    async def succeeded(self, client: str, user: str, share: Share | None) -> None:
        """Take note that a client has authenticated as a user, here and at all nodes."""
        login = _login(client, user)
        last = max(self._logins.of(login).values(), default=None)
        if last is not None and self._clock() - last < LOGIN_TOLD_SECONDS:
            return
        self._logins.add(login, b"")
        if share is not None and self._limits_users:
            await self._logins.share(login, b"", share)


def _octets(user: str) -> bytes:
    return user.encode("utf-8", "surrogateescape")


def _login(client: str, user: str) -> bytes:
    """Return the name of a client as a user; no address has a line feed."""
    return client.encode() + b"\n" + _octets(user)
