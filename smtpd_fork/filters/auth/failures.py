"""Failures: limits of failed attempts to authenticate, across all sessions.

A failure is a guess at a password. The same credentials again are no other guess: a telephone with
an old password does not shut out all others behind its address. A client is counted by its IPv4
address or its /64 (IPv6). While an attempt goes on it counts as a failure, so that many sessions at
once guess no more often than one. The processes and nodes of a fleet count a client together.

A user is counted as well, for guesses that come from many clients. Then only clients that have
authenticated as this user before go on; else a stranger could lock out everybody whose name is
known. Users who do not exist count alike: which names there are does not show.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
from collections import OrderedDict, deque
from contextlib import asynccontextmanager
from hashlib import blake2b
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from smtpd_fork.filters.auth.outcome import TOO_MANY_FAILURES, USER_HAS_TOO_MANY, RefusedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

__all__ = ["Failures"]

MOST_COUNTED = 10_000
"""Clients with failures, users with failures, and pairs of both that are known: each.

Ten failures take about 1 KiB; the one that failed longest ago is forgotten."""

GUESS_BYTES = 2
"""Of the hash of a client's guess, which other nodes learn: too few to find out a password by. The
hash has a key that no client knows: it could choose guesses with one hash, which count as one."""

T = TypeVar("T")

Share: TypeAlias = (
    "Callable[[str, bytes, int, float, bytes], Awaitable[tuple[bytes, Mapping[bytes, float]]]]"
)
"""Tells all nodes of a client's guess, the limit, the seconds that it counts, and the key of its
hash; returns the key of all nodes, and if it is that one, their guesses with the seconds that each
counts yet."""

Guesses: TypeAlias = dict[bytes, float]
"""What was guessed, and when last."""


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
        self._of_client = of_client
        self._of_user = of_user
        self._seconds = seconds
        self._clock = clock
        self._clients: OrderedDict[bytes, Guesses] = OrderedDict()
        self._users: OrderedDict[bytes, Guesses] = OrderedDict()
        self._known: OrderedDict[bytes, None] = OrderedDict()
        self._turns: dict[bytes, _Turns] = {}
        self._key = secrets.token_bytes(16)
        self._guess_key = secrets.token_bytes(16)  # that of all nodes, once it is known

    @asynccontextmanager
    async def attempt(self, client: str, user: str, *, at_once: int) -> AsyncIterator[None]:
        """Wait until the client may make an attempt, and count it as long as it goes on.

        :param client: what it is counted by; empty: it is not
        :param user: whom it claims to be; empty: that is not known
        :param at_once: attempts of one client that may go on at once
        :raises RefusedError: it has failed too often, or the user has
        """
        self._check_user(client, user)
        if not client:
            yield
            return
        key = self._digest(client)
        turns = self._turns.setdefault(key, _Turns())
        try:
            while turns.running >= min(at_once, self._left(key)):
                await turns.wait()
            turns.running += 1
            try:
                yield
            finally:
                turns.running -= 1
        finally:
            turns.wake()
            if not (turns.running or turns.waiters):
                self._turns.pop(key, None)

    def _left(self, client: bytes) -> int:
        """Return how often the client may fail yet.

        :raises RefusedError: never again
        """
        if not self._of_client:
            return sys.maxsize
        left = self._of_client - len(self._guesses(self._clients, client))
        if left <= 0:
            raise RefusedError(TOO_MANY_FAILURES, "too many failures of the client")
        return left

    def _check_user(self, client: str, user: str) -> None:
        if not (self._of_user and user):
            return
        failures = len(self._guesses(self._users, self._digest(user)))
        if failures >= self._of_user and self._digest(client, user) not in self._known:
            raise RefusedError(USER_HAS_TOO_MANY, "too many failures of the user")

    def failed(self, client: str, user: str, credentials: bytes) -> bool:
        """Count a guess.

        :param credentials: what was guessed; it is not kept
        :returns: whether the client has reached its limit with it
        """
        if user:
            guess = self._digest(credentials)
            self._count(self._users, self._digest(user), guess, self._of_user)
        return bool(client) and self._count(
            *(self._clients, self._digest(client)),
            *(self._guess(client, credentials, self._guess_key), self._of_client),
        )

    async def share(self, client: str, credentials: bytes, share: Share) -> bool:
        """Have all nodes count a guess that was counted here, and count those at other nodes.

        :returns: whether the client has reached its limit with them
        """
        most = self._of_client
        if not (client and most):
            return False
        own = self._guess_key
        guess = self._guess(client, credentials, own)
        ours, found = await share(client, guess, most, self._seconds, own)
        if ours != own:  # nothing was counted; another session may have learned the key meanwhile
            self._guess_key = ours
            again = self._guess(client, credentials, ours)
            self._rename(client, guess, again)
            ours, found = await share(client, again, most, self._seconds, ours)
        guesses = self._guesses(self._clients, key := self._digest(client))
        before, since = len(guesses), self._clock() - self._seconds
        for guess, left in found.items():
            guesses[guess] = max(since + left, guesses.get(guess, since))
        _put(self._clients, key, guesses)
        return before < most <= len(guesses)

    def _rename(self, client: str, guess: bytes, name: bytes) -> None:
        """Have a guess be counted by another name; nothing if it is not counted."""
        guesses = self._clients.get(self._digest(client), {})
        if guess in guesses:
            guesses[name] = guesses.pop(guess)

    @staticmethod
    def _guess(client: str, credentials: bytes, key: bytes) -> bytes:
        """Return what stands for a guess of a client, the same at all nodes."""
        text = client.encode() + b"\n" + credentials
        return blake2b(text, key=key, digest_size=GUESS_BYTES).digest()

    def _count(
        self, table: OrderedDict[bytes, Guesses], key: bytes, guess: bytes, most: int
    ) -> bool:
        """Return whether the guess is the last that is allowed."""
        guesses = self._guesses(table, key)
        before = len(guesses)
        if before < most:
            guesses[guess] = self._clock()
            _put(table, key, guesses)
        return before < most == len(guesses)

    def _guesses(self, table: OrderedDict[bytes, Guesses], key: bytes) -> Guesses:
        """Return the guesses that count now."""
        since = self._clock() - self._seconds
        return {guess: at for guess, at in table.get(key, {}).items() if at > since}

    def succeeded(self, client: str, user: str) -> None:
        """Take note that a client has authenticated as a user."""
        _put(self._known, self._digest(client, user), None)

    def _digest(self, *parts: str | bytes) -> bytes:
        """Return what stands for *parts* here: a dump of the memory shows nobody's password."""
        made = blake2b(key=self._key, digest_size=8)
        for part in parts:
            octets = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
            made.update(b"%d:" % len(octets) + octets)
        return made.digest()


def _put(table: OrderedDict[bytes, T], key: bytes, value: T) -> None:
    """Put in a value as the newest, and forget the oldest if there are too many."""
    table[key] = value
    table.move_to_end(key)
    if len(table) > MOST_COUNTED:
        table.popitem(last=False)
