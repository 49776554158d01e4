"""Greylist: messages that are to be sent again, some time after they came first."""

from __future__ import annotations

from collections import OrderedDict

__all__ = ["Greylist"]

DELAY_SECONDS = 300.0
"""As postgrey and rspamd have it."""

SECONDS = 86_400.0
"""How long a message is remembered; clients send it again within hours."""

MESSAGES = 100_000
"""Messages that are remembered, 150 bytes each; the oldest is forgotten first."""


class Greylist:
    """Remembers messages by a hash; in memory, so a restart forgets."""

    def __init__(self) -> None:
        self._first_seen: OrderedDict[str, float] = OrderedDict()

    def delays(self, key: str, now: float) -> bool:
        """Whether a message has to be sent again, later.

        :param key: the same for the same message
        :param now: seconds of a clock that never goes back
        """
        seen = self._first_seen
        while seen and (now - next(iter(seen.values())) > SECONDS or len(seen) >= MESSAGES):
            seen.popitem(last=False)
        return now - seen.setdefault(key, now) < DELAY_SECONDS

    def __len__(self) -> int:
        return len(self._first_seen)
