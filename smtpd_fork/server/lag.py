"""LagMonitor: measures the event-loop lag."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

    from smtpd_fork.dialogue.tally import Latency
    from smtpd_fork.gate.rules import Load

__all__ = ["LagMonitor"]

log = logging.getLogger("smtpd_fork.server")

INTERVAL_SECONDS = 0.1
DECAY = 0.5
"""Factor for the previous lag at each measurement: a single delay fades within half a second."""


class LagMonitor:
    """Measures the event-loop lag for the gate.

    :param load: receives the lag; the gate reads it there
    :param limit: seconds; it is logged when the lag exceeds the limit, and when it no longer does
    :param latency: counts every measurement
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, load: Load, limit: float, latency: Latency
    ) -> None:
        self._loop = loop
        self._load = load
        self._limit = limit
        self._latency = latency
        self._exceeded = False
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Start to measure."""
        self._due = time.monotonic() + INTERVAL_SECONDS
        self._timer = self._loop.call_later(INTERVAL_SECONDS, self._measure)

    def stop(self) -> None:
        """Stop measuring, and reset the lag to 0."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._load.lag = 0.0

    def _measure(self) -> None:
        late = max(0.0, time.monotonic() - self._due)
        self._latency.observe(late)
        self._load.lag = max(late, self._load.lag * DECAY)
        exceeded = self._load.lag > self._limit
        if exceeded and not self._exceeded:
            log.warning("event-loop lag %.0f ms: new clients are refused", late * 1000)
        elif self._exceeded and not exceeded:
            log.warning("event-loop lag is over: clients are accepted again")
        self._exceeded = exceeded
        self.start()
