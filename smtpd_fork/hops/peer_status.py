"""The state of a program that a sink or a filter talks to: connections, and whether it answers."""

from __future__ import annotations

import time
from dataclasses import dataclass

__all__ = ["Outage", "PeerStatus"]


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """What a sink or a filter that talks to a server knows of it, for ``status`` and metrics.

    :ivar connections: that are open
    :ivar busy: of these, with a message
    :ivar waiting: messages that wait for a connection
    :ivar down_since: seconds since the epoch; None while the server answers
    :ivar reason: why it is down; empty while it answers
    """

    connections: int = 0
    busy: int = 0
    waiting: int = 0
    down_since: float | None = None
    reason: str = ""


class Outage:
    """Since when a server does not answer, and why.

    :ivar since: seconds since the epoch; None while it answers
    :ivar reason: empty while it answers
    """

    def __init__(self) -> None:
        self.since: float | None = None
        self.reason = ""

    def begin(self, reason: str) -> bool:
        """Note that it does not answer; return whether it did before."""
        self.reason = reason
        if self.since is not None:
            return False
        self.since = time.time()
        return True

    def end(self) -> float | None:
        """Note that it answers; return for how many seconds it did not, if it did not."""
        if self.since is None:
            return None
        seconds = max(0.0, time.time() - self.since)
        self.since, self.reason = None, ""
        return seconds
