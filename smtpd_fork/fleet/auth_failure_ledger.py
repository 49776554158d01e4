"""AuthFailureLedger: clients that fail to authenticate, in the memory of one process.

It does what ``auth_failures.lua`` does in Redis; a test compares the two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smtpd_fork.fleet.auth_failures import AuthFailure

__all__ = ["AuthFailureLedger", "AuthFailureState"]

MOST_CLIENTS = 10_000
"""That are known; the one that failed longest ago is forgotten. In Redis, time forgets them."""


class AuthFailureState(NamedTuple):
    """All that a ledger has."""

    clients: dict[str, dict[str, int]]
    hash_keys: dict[str, str]


class AuthFailureLedger:
    """The guesses of the clients of all nodes."""

    def __init__(self) -> None:
        self._clients: dict[str, dict[str, int]] = {}  # the latest to fail is the last
        self._hash_keys: dict[str, str] = {}

    def state(self) -> AuthFailureState:
        """Return all that it has."""
        return AuthFailureState(self._clients, self._hash_keys)

    @classmethod
    def of_state(cls, state: AuthFailureState) -> Self:
        """Return the ledger that was handed over."""
        found = cls()
        found._clients, found._hash_keys = state
        return found

    def count(
        self, keys: Sequence[str], failure: AuthFailure, now: int
    ) -> tuple[str, list[tuple[str, int]]]:
        """Add a guess; return all of the client, and the milliseconds for which they count yet.

        Before them is the key of the hash; a guess that has another one is not counted.

        :param keys: of the client, and of the key of the hash
        :param now: milliseconds of a clock that never goes back
        """
        key, of_hash = keys
        known = self._hash_keys.setdefault(of_hash, failure.key)
        if known != failure.key:
            return known, []
        before = self._clients.pop(key, {})
        guesses = {guess: ends for guess, ends in before.items() if ends > now}
        if len(guesses) < failure.most:
            guesses[failure.guess] = now + failure.period
        self._clients[key] = guesses
        if len(self._clients) > MOST_CLIENTS:
            del self._clients[next(iter(self._clients))]
        return known, [(guess, ends - now) for guess, ends in guesses.items()]
