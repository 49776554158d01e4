"""RecipientCache: a cache of the next hop's replies to RCPT."""

from __future__ import annotations

from collections import OrderedDict
from sys import getsizeof

__all__ = ["RecipientCache"]

MOST_ANSWERS = 100_000
"""Maximum recipients in the cache."""

MOST_BYTES = 40_000_000
"""Maximum bytes of memory, enough for usual addresses and replies; clients may send long ones."""

ENTRY_BYTES = 250
"""Bytes of memory of an entry, in addition to the two strings."""

SECONDS = {"2": 600.0, "4": 10.0, "5": 60.0}
"""Seconds that a reply is cached, by its first digit. A new mailbox is found after a minute."""


class RecipientCache:
    """Replies by recipient; the oldest entry is removed first.

    :param most: maximum recipients in the cache
    """

    def __init__(self, most: int = MOST_ANSWERS) -> None:
        self._most = most
        self._bytes = 0
        self._answers: OrderedDict[str, tuple[float, str]] = OrderedDict()

    def get(self, address: str, now: float) -> str | None:
        """Return the cached reply to a recipient; None if there is none, or it has expired."""
        until, reply = self._answers.get(address, (0.0, ""))
        return reply if now < until else None

    def put(self, address: str, reply: str, now: float) -> None:
        """Store the reply to a recipient.

        :param now: seconds of a monotonic clock
        """
        before = self._answers.pop(address, None)
        if before is not None:
            self._bytes -= _size(address, before[1])
        self._answers[address] = now + SECONDS[reply[0]], reply
        self._bytes += _size(address, reply)
        while len(self._answers) > self._most or self._bytes > MOST_BYTES:
            oldest, (_, its_reply) = self._answers.popitem(last=False)
            self._bytes -= _size(oldest, its_reply)

    def __len__(self) -> int:
        return len(self._answers)


def _size(address: str, reply: str) -> int:
    return getsizeof(address) + getsizeof(reply) + ENTRY_BYTES
