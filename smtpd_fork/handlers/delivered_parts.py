"""DeliveredParts: remembers which sinks have stored a message that the client will send again."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from sys import getsizeof

__all__ = ["DeliveredParts", "Parts"]

Parts = Mapping[str, frozenset[str]]
"""The addresses for which a sink has stored the message, by the name of the sink."""

MESSAGES = 10_000
"""Maximum of remembered messages, of a few hundred bytes each; the oldest is forgotten first."""

MOST_BYTES = 40_000_000
"""Maximum memory for recipients: a client may send each message to a thousand recipients, one of
whom is rejected."""

ADDRESS_BYTES = 80
"""Bytes of an address in a set, besides its text."""

SECONDS = 3600.0
"""Time after which a message is forgotten. Clients wait at least half an hour before they send a
message again (RFC 5321 4.5.4.1)."""


class DeliveredParts:
    """Remembers parts of messages by a hash of the message; in memory, so until the next restart.

    :param clock: a monotonic clock, in seconds
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: OrderedDict[str, tuple[float, Parts]] = OrderedDict()
        self._bytes = 0

    def __bool__(self) -> bool:
        return bool(self._known)

    def of(self, key: str) -> Parts:
        """Return the remembered parts of a message."""
        self._expire()
        _, parts = self._known.get(key, (0.0, {}))
        return parts

    def remember(self, key: str, parts: Parts, done: Collection[str] = ()) -> None:
        """Remember further parts of a message.

        :param done: addresses for which the message will not be sent again; they are forgotten
        """
        self._expire()
        before = self._pop(key)
        names = before.keys() | parts.keys()
        merged = {n: before.get(n, frozenset()) | parts.get(n, frozenset()) for n in names}
        left = {name: addresses.difference(done) for name, addresses in merged.items()}
        if any(left.values()):
            self._known[key] = (self._clock() + SECONDS, left)
            self._bytes += _size(left)
        while len(self._known) > MESSAGES or self._bytes > MOST_BYTES:
            self._pop(next(iter(self._known)))

    def _pop(self, key: str) -> Parts:
        _, parts = self._known.pop(key, (0.0, {}))
        self._bytes -= _size(parts)
        return parts

    def _expire(self) -> None:
        now = self._clock()
        while self._known and next(iter(self._known.values()))[0] <= now:
            self._pop(next(iter(self._known)))


def _size(parts: Parts) -> int:
    """Return the bytes of memory of the addresses."""
    return sum(
        getsizeof(address) + ADDRESS_BYTES for addresses in parts.values() for address in addresses
    )
