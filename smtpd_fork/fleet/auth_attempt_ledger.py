"""AuthAttemptLedger: counts attempts to authenticate, in the memory of one process.

It does the same as ``auth_attempts.lua`` does in Redis; a test compares the two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smtpd_fork.fleet.auth_attempts import AuthAttempt

__all__ = ["AuthAttemptLedger", "AuthAttemptState"]

MOST_NAMES = 10_000
"""Maximum number of names of one count; above it, the name with the oldest attempt is removed. Each
count has a maximum of its own, so that invented user names do not displace clients. Redis removes
names only when their time is over."""


class AuthAttemptState(NamedTuple):
    """The content of a ledger, for an upgrade.

    :ivar names: the attempts by name, in groups by the key under which the hash key is stored
    :ivar hash_keys: the hash keys, by the same keys
    """

    names: dict[str, dict[str, dict[str, int]]]
    hash_keys: dict[str, str]


class AuthAttemptLedger:
    """Counts the attempts of all nodes."""

    def __init__(self) -> None:
        # The names of one count are in the order of their latest attempts.
        self._names: dict[str, dict[str, dict[str, int]]] = {}
        self._hash_keys: dict[str, str] = {}

    def state(self) -> AuthAttemptState:
        """Return the content."""
        return AuthAttemptState(self._names, self._hash_keys)

    @classmethod
    def of_state(cls, state: AuthAttemptState) -> Self:
        """Return a ledger with the content of another one."""
        found = cls()
        found._names, found._hash_keys = state
        return found

    def count(
        self, keys: Sequence[str], message: AuthAttempt, now: int
    ) -> tuple[str, list[tuple[str, int]]]:
        """Add an attempt, and return all attempts of this name.

        :param keys: of the name, and of the hash key
        :param now: milliseconds of a monotonic clock
        :returns: the hash key, and the attempts with the milliseconds for which they still count.
            An attempt hashed with another key is not added
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
