"""The state of an external program that a sink or a filter uses: connections and outages."""

from __future__ import annotations

import time
from dataclasses import dataclass

__all__ = ["Outage", "PeerStatus"]


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """The state of a server that a sink or a filter uses, for ``status`` and metrics.

    :ivar connections: number of open connections
    :ivar busy: number of these that carry a message
    :ivar waiting: number of messages that wait for a connection
    :ivar down_since: seconds since the epoch; None while the server answers
    :ivar reason: why the server is down; empty while it answers
    """

    connections: int = 0
    busy: int = 0
    waiting: int = 0
    down_since: float | None = None
    reason: str = ""


class Outage:
    """The current outage of a server, if any.

    :ivar since: seconds since the epoch; None while the server answers
    :ivar reason: why the server does not answer; empty while it answers
    """

    def __init__(self) -> None:
        self.since: float | None = None
        self.reason = ""

    def begin(self, reason: str) -> bool:
        """Record that the server does not answer; return whether it answered before."""
        self.reason = reason
        if self.since is not None:
            return False
        self.since = time.time()
        return True

    def end(self) -> float | None:
        """Record that the server answers; return the seconds of the outage, if any, or None."""
        if self.since is None:
            return None
        seconds = max(0.0, time.time() - self.since)
        self.since, self.reason = None, ""
        return seconds
