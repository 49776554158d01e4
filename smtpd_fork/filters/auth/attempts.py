"""Attempts: count attempts to authenticate under a name, each for a limited time.

Only hashes of names and attempts are stored. The hashes have a secret key: a client that knew it
could choose guesses with the same hash, which would count as one. All nodes of a fleet use the same
key, so that their attempts can be compared.
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
"""Maximum names with attempts; ten attempts take about 1 KiB. The name with the oldest last attempt
is removed."""

ATTEMPT_BYTES = 2
"""Bytes of the hash of an attempt, which other nodes get: too few to find the password."""

NAME_BYTES = 8
"""Bytes of the hash of a name."""

Share: TypeAlias = (
    "Callable[[AuthCount, bytes, bytes, bytes], Awaitable[tuple[bytes, Mapping[bytes, float]]]]"
)
"""A function that shares an attempt with all nodes. Its arguments are the kind of count, the hashes
of the name and of the attempt, and the key of the hashes; with an empty attempt it only asks. It
returns the key that all nodes use, and, if it is the same key, their attempts under the name with
the seconds that each of them still counts."""


class Attempts:
    """The attempts under each name.

    :param count: the kind of count, with its limit; with a limit of 0 nothing is counted
    :param clock: returns the time in seconds
    """

    def __init__(self, count: AuthCount, clock: Callable[[], float]) -> None:
        self._count = count
        self._clock = clock
        self._table: OrderedDict[bytes, dict[bytes, float]] = OrderedDict()
        self._name_key = secrets.token_bytes(16)
        self._key = secrets.token_bytes(16)  # replaced by the key of all nodes when known

    def __len__(self) -> int:
        return len(self._table)

    def of(self, name: bytes) -> dict[bytes, float]:
        """Return the attempts under a name that still count, with the time when each was made."""
        since = self._clock() - self._count.seconds
        found = self._table.get(_hash(name, self._name_key, NAME_BYTES), {})
        return {attempt: at for attempt, at in found.items() if at > since}

    def left(self, name: bytes) -> int:
        """Return the number of attempts that are left; 0 or less: none."""
        return self._count.most - len(self.of(name))

    def add(self, name: bytes, attempt: bytes) -> bool:
        """Count an attempt; renew the time of an attempt that counts already.

        :returns: whether it is the last one that is allowed
        """
        attempts, most = self.of(name), self._count.most
        before, hashed = len(attempts), self._hash(name, attempt)
        if before < most or hashed in attempts:
            attempts[hashed] = self._clock()
            self._put(name, attempts)
        return before < most == len(attempts)

    async def share(self, name: bytes, attempt: bytes, share: Share) -> bool:
        """Share an attempt that was added here with all nodes, and count their attempts here.

        :returns: whether the name has now reached its limit
        """
        found = await self._shared(name, lambda: self._hash(name, attempt), share)
        return self._learn(name, found)

    async def ask(self, name: bytes, share: Share) -> None:
        """Get the attempts of other nodes under a name, and count them here."""
        self._learn(name, await self._shared(name, lambda: b"", share))

    async def _shared(
        self, name: bytes, attempt: Callable[[], bytes], share: Share
    ) -> Mapping[bytes, float]:
        hashed, own = attempt(), self._key
        ours, found = await share(self._count, self._shared_name(name), hashed, own)
        if ours == own:
            return found
        # With another key the nodes have counted nothing: send the attempt again.
        self._key = ours
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
        """Replace the hash of a counted attempt; do nothing if it is not counted."""
        attempts = self._table.get(_hash(name, self._name_key, NAME_BYTES), {})
        if attempt in attempts:
            attempts[again] = attempts.pop(attempt)

    def _shared_name(self, name: bytes) -> bytes:
        return _hash(name, self._key, NAME_BYTES)

    def _hash(self, name: bytes, attempt: bytes) -> bytes:
        return _hash(b"%d:%b\n%b" % (len(name), name, attempt), self._key, ATTEMPT_BYTES)

    def _put(self, name: bytes, attempts: dict[bytes, float]) -> None:
        """Store attempts of a name as the newest, and remove the oldest if the table is full."""
        key = _hash(name, self._name_key, NAME_BYTES)
        self._table[key] = attempts
        self._table.move_to_end(key)
        if len(self._table) > MOST_NAMES:
            self._table.popitem(last=False)


def _hash(text: bytes, key: bytes, size: int) -> bytes:
    return blake2b(text, key=key, digest_size=size).digest()
