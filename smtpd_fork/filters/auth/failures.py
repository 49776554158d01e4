"""Failures: limit failed attempts to authenticate, across all sessions.

A failure is an attempt with wrong credentials. The same credentials count only once, so that a
phone with an old password does not block all clients behind its address. Failures are counted per
client (IPv4 address or IPv6 /64). An attempt in progress counts as a failure, so that many
concurrent sessions cannot make more attempts than one.

Failures are also counted per user, against guesses from many clients. When a user has reached the
limit, only clients that have authenticated as this user before may try: otherwise an attacker could
lock out every user whose name is known. Unknown users are counted in the same way, so that a client
cannot find out which users exist.

All processes and nodes of a fleet share these counts.
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
"""Seconds for which a log-in (a client that has authenticated as a user) is remembered."""

LOGIN_REFRESH_SECONDS = 86_400.0
"""Seconds after which a log-in is recorded and shared with all nodes again, instead of at each
session."""


class _InProgress:
    """The attempts of one client that are in progress, and those that wait for their end."""

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
                self.wake()  # wake another waiter instead of this one
            raise

    def wake(self) -> None:
        """Wake the next waiter, which checks the limit again."""
        while self.waiters:
            waiter = self.waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return


class Failures:
    """Counts failed attempts.

    :param of_client: failures of one client before it is refused; 0 is no limit
    :param of_user: failures of one user before clients that have not authenticated as this user are
        refused; 0 is no limit
    :param seconds: seconds that a failure counts
    :param clock: returns the time in seconds
    """

    def __init__(
        self, of_client: int, of_user: int, seconds: float, clock: Callable[[], float]
    ) -> None:
        self._limits_clients, self._limits_users = of_client > 0, of_user > 0
        self._clock = clock
        self._clients = Attempts(AuthCount("client", of_client, seconds), clock)
        self._users = Attempts(AuthCount("user", of_user, seconds), clock)
        self._logins = Attempts(AuthCount("login", 1, LOGIN_SECONDS), clock)
        self._running: dict[str, _InProgress] = {}

    @asynccontextmanager
    async def attempt(self, client: str, user: str, *, at_once: int) -> AsyncIterator[None]:
        """Wait until the client may make an attempt, and count it while it is in progress.

        :param client: the key of the client; empty: it is not counted
        :param user: the user name that the client claims; empty: not known
        :param at_once: maximum concurrent attempts of one client
        :raises RefusedError: the client or the user has too many failures
        """
        if self._is_stranger(client, user):
            raise RefusedError(USER_HAS_TOO_MANY, "too many failures of the user")
        if not client:
            yield
            return
        in_progress = self._running.setdefault(client, _InProgress())
        try:
            while in_progress.running >= min(at_once, self._left(client)):
                await in_progress.wait()
            in_progress.running += 1
            try:
                yield
            finally:
                in_progress.running -= 1
        finally:
            in_progress.wake()
            if not (in_progress.running or in_progress.waiters):
                self._running.pop(client, None)

    def _left(self, client: str) -> int:
        """Return the number of failures that the client has left.

        :raises RefusedError: none are left
        """
        if not self._limits_clients:
            return sys.maxsize
        left = self._clients.left(client.encode())
        if left <= 0:
            raise RefusedError(TOO_MANY_FAILURES, "too many failures of the client")
        return left

    def _is_stranger(self, client: str, user: str) -> bool:
        """Return whether the user is at its limit, and the client has never been this user."""
        if not (self._limits_users and user) or self._users.left(_octets(user)) > 0:
            return False
        return not self._logins.of(_login(client, user))

    async def ask_for_login(self, client: str, user: str, share: Share) -> None:
        """Ask all nodes for a log-in of the client, if only that would let it try."""
        if self._is_stranger(client, user):
            await self._logins.ask(_login(client, user), share)

    def failed(self, client: str, user: str, credentials: bytes) -> bool:
        """Count a failure.

        :param credentials: the wrong credentials; only a hash of them is stored
        :returns: whether the client has now reached its limit
        """
        if user:
            self._users.add(_octets(user), credentials)
        return bool(client) and self._clients.add(client.encode(), credentials)

    async def share(self, client: str, user: str, credentials: bytes, share: Share) -> bool:
        """Share a failure with all nodes, and count their failures here.

        :returns: whether the client has now reached its limit
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
        """Remember on all nodes that a client has authenticated as a user."""
        login = _login(client, user)
        last = max(self._logins.of(login).values(), default=None)
        if last is not None and self._clock() - last < LOGIN_REFRESH_SECONDS:
            return
        self._logins.add(login, b"")
        if share is not None and self._limits_users:
            await self._logins.share(login, b"", share)


def _octets(user: str) -> bytes:
    return user.encode("utf-8", "surrogateescape")


def _login(client: str, user: str) -> bytes:
    """Return the key of a pair of client and user; an address contains no line feed."""
    return client.encode() + b"\n" + _octets(user)
