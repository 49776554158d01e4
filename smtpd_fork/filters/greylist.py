"""Greylist: delay messages until the client has sent them again after some time."""

from __future__ import annotations

from collections import OrderedDict

__all__ = ["Greylist"]

DELAY_SECONDS = 300.0
"""Seconds until a message is accepted; the default of postgrey and rspamd."""

SECONDS = 86_400.0
"""Seconds that a message is remembered; clients send a message again within hours."""

MESSAGES = 100_000
"""Maximum messages that are remembered, 150 bytes each; the oldest is removed first."""


class Greylist:
    """Remembers hashes of messages in memory; they are lost at a restart."""

    def __init__(self) -> None:
        self._first_seen: OrderedDict[str, float] = OrderedDict()

    def delays(self, key: str, now: float) -> bool:
        """Return whether a message is delayed; remember it if it is new.

        :param key: the hash of the message
        :param now: seconds of a monotonic clock
        """
        seen = self._first_seen
        while seen and (now - next(iter(seen.values())) > SECONDS or len(seen) >= MESSAGES):
            seen.popitem(last=False)
        return now - seen.setdefault(key, now) < DELAY_SECONDS

    def __len__(self) -> int:
        return len(self._first_seen)
