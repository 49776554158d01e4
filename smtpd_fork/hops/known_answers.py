"""KnownAnswers: what a next hop said of recipients, for as long as that can be believed."""

from __future__ import annotations

from collections import OrderedDict
from sys import getsizeof

__all__ = ["KnownAnswers"]

MOST_ANSWERS = 100_000
"""Recipients that are remembered."""

MOST_BYTES = 40_000_000
"""Of memory: enough for usual addresses and replies. A client could have the longest remembered."""

ENTRY_BYTES = 250
"""Of an answer, besides the two texts."""

SECONDS = {"2": 600.0, "4": 10.0, "5": 60.0}
"""How long an answer counts, by its class. A mailbox that is made exists a minute later at most."""


class KnownAnswers:
    """Answers by recipient; the oldest is forgotten first.

    :param most: recipients that are remembered
    """

    def __init__(self, most: int = MOST_ANSWERS) -> None:
        self._most = most
        self._bytes = 0
        self._answers: OrderedDict[str, tuple[float, str]] = OrderedDict()

    def get(self, address: str, now: float) -> str | None:
        """Return the reply to a recipient; None if it is not known, or not any more."""
        until, reply = self._answers.get(address, (0.0, ""))
        return reply if now < until else None

    def put(self, address: str, reply: str, now: float) -> None:
        """Remember the reply to a recipient.

        :param now: seconds of a clock that never goes back
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
