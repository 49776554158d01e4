"""Attempts: attempts to authenticate by the name that they are counted under, each for a time.

Neither a name nor an attempt is kept, but hashes. They have a key that no client knows: it could
choose guesses with one hash, which count as one. All nodes of a fleet have the same key, so that
their attempts can be compared.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from hashlib import blake2b
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from smtpd_fork.fleet.auth_attempts import AuthCount

__all__ = ["Attempts", "Share"]

MOST_NAMES = 10_000
"""Of which attempts are known: ten take about 1 KiB. That of the oldest attempt is forgotten."""

ATTEMPT_BYTES = 2
"""Of the hash of an attempt, which other nodes learn: too few to find out a password by."""

NAME_BYTES = 8
"""Of the hash of a name."""

Share: TypeAlias = (
    "Callable[[AuthCount, bytes, bytes, bytes], Awaitable[tuple[bytes, Mapping[bytes, float]]]]"
)
"""Tells all nodes of an attempt: what they count, the hashes of its name and of itself, and the key
of these; without an attempt it asks alone. It returns the key of all nodes, and if it is that one,
their attempts under the name with the seconds that each counts yet."""


class Attempts:
    """The attempts under each name.

    :param count: what is counted; of 0 attempts nothing is
    :param clock: tells the time
    """

    def __init__(self, count: AuthCount, clock: Callable[[], float]) -> None:
        self._count = count
        self._clock = clock
        self._table: OrderedDict[bytes, dict[bytes, float]] = OrderedDict()
        self._name_key = secrets.token_bytes(16)
        self._key = secrets.token_bytes(16)  # that of all nodes, once it is known

    def __len__(self) -> int:
        return len(self._table)

    def of(self, name: bytes) -> dict[bytes, float]:
        """Return the attempts under a name that count now, and when each was made last."""
        since = self._clock() - self._count.seconds
        found = self._table.get(_hash(name, self._name_key, NAME_BYTES), {})
        return {attempt: at for attempt, at in found.items() if at > since}

    def left(self, name: bytes) -> int:
        """Return how many attempts there may be yet; at most 0: none."""
        return self._count.most - len(self.of(name))

    def add(self, name: bytes, attempt: bytes) -> bool:
        """Count an attempt; one that counts already does so from now on.

        :returns: whether it is the last that is allowed
        """
        attempts, most = self.of(name), self._count.most
        before, hashed = len(attempts), self._hash(name, attempt)
        if before < most or hashed in attempts:
            attempts[hashed] = self._clock()
            self._put(name, attempts)
        return before < most == len(attempts)

    async def share(self, name: bytes, attempt: bytes, share: Share) -> bool:
        """Have all nodes count an attempt that was added here, and count those of other nodes.

        :returns: whether the name has reached its limit with them
        """
        found = await self._shared(name, lambda: self._hash(name, attempt), share)
        return self._learn(name, found)

    async def ask(self, name: bytes, share: Share) -> None:
        """Count the attempts of other nodes under a name."""
        self._learn(name, await self._shared(name, lambda: b"", share))

    async def _shared(
        self, name: bytes, attempt: Callable[[], bytes], share: Share
    ) -> Mapping[bytes, float]:
        hashed, own = attempt(), self._key
        ours, found = await share(self._count, self._shared_name(name), hashed, own)
        if ours == own:
            return found
        self._key = ours  # nothing was counted; another session may have learned it meanwhile
        self._rename(name, hashed, again := attempt())
        _, found = await share(self._count, self._shared_name(name), again, ours)
        return found

    def _learn(self, name: bytes, found: Mapping[bytes, float]) -> bool:
        attempts, most = self.of(name), self._count.most
        before, since = len(attempts), self._clock() - self._count.seconds
        for attempt, left in found.items():
            attempts[attempt] = max(since + left, attempts.get(attempt, since))
        if attempts:
            self._put(name, attempts)
        return before < most <= len(attempts)

    def _rename(self, name: bytes, attempt: bytes, again: bytes) -> None:
        """Have an attempt be counted by another hash; nothing if it is not counted."""
        attempts = self._table.get(_hash(name, self._name_key, NAME_BYTES), {})
        if attempt in attempts:
            attempts[again] = attempts.pop(attempt)

    def _shared_name(self, name: bytes) -> bytes:
        return _hash(name, self._key, NAME_BYTES)

    def _hash(self, name: bytes, attempt: bytes) -> bytes:
        return _hash(b"%d:%b\n%b" % (len(name), name, attempt), self._key, ATTEMPT_BYTES)

    def _put(self, name: bytes, attempts: dict[bytes, float]) -> None:
        """Put in the attempts of a name as the newest, and forget the oldest if too many."""
        key = _hash(name, self._name_key, NAME_BYTES)
        self._table[key] = attempts
        self._table.move_to_end(key)
        if len(self._table) > MOST_NAMES:
            self._table.popitem(last=False)


def _hash(text: bytes, key: bytes, size: int) -> bytes:
    return blake2b(text, key=key, digest_size=size).digest()
