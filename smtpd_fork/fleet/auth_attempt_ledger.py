"""AuthAttemptLedger: attempts to authenticate, in the memory of one process.

It does what ``auth_attempts.lua`` does in Redis; a test compares the two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smtpd_fork.fleet.auth_attempts import AuthAttempt

__all__ = ["AuthAttemptLedger", "AuthAttemptState"]

MOST_NAMES = 10_000
"""Of one count that are known, so that invented names of users push out no client; the one of the
oldest attempt is forgotten. In Redis, time forgets them."""


class AuthAttemptState(NamedTuple):
    """All that a ledger has; names and keys of hashes are by the key of the hash's key."""

    names: dict[str, dict[str, dict[str, int]]]
    hash_keys: dict[str, str]


class AuthAttemptLedger:
    """The attempts of all nodes."""

    def __init__(self) -> None:
        # Of one count the latest to attempt is the last.
        self._names: dict[str, dict[str, dict[str, int]]] = {}
        self._hash_keys: dict[str, str] = {}

    def state(self) -> AuthAttemptState:
        """Return all that it has."""
        return AuthAttemptState(self._names, self._hash_keys)

    @classmethod
    def of_state(cls, state: AuthAttemptState) -> Self:
        """Return the ledger that was handed over."""
        found = cls()
        found._names, found._hash_keys = state
        return found

    def count(
        self, keys: Sequence[str], message: AuthAttempt, now: int
    ) -> tuple[str, list[tuple[str, int]]]:
        """Add an attempt; return all of the name, and the milliseconds for which they count yet.

        Before them is the key of the hash; an attempt that has another one is not counted.

        :param keys: of the name, and of the key of the hash
        :param now: milliseconds of a clock that never goes back
        """
        name, of_hash = keys
        known = self._hash_keys.setdefault(of_hash, message.key)
        if known != message.key:
            return known, []
        names = self._names.setdefault(of_hash, {})
        attempts = {each: ends for each, ends in names.get(name, {}).items() if ends > now}
        if message.attempt and (len(attempts) < message.most or message.attempt in attempts):
            attempts[message.attempt] = now + message.period
            names.pop(name, None)
            names[name] = attempts
            if len(names) > MOST_NAMES:
                del names[next(iter(names))]
        return known, [(each, ends - now) for each, ends in attempts.items()]
