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
FADING = 0.5
"""What is left of a lag at the next look: a single hiccup is over in half a second."""


class LagMonitor:
    """Measures the event-loop lag, and writes it where the gate reads it.

    :param load: where it is written
    :param limit: seconds; exceeding it is logged once an episode
    :param latency: counts every measurement
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, load: Load, limit: float, latency: Latency
    ) -> None:
        self._loop = loop
        self._load = load
        self._limit = limit
        self._latency = latency
        self._over = False
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to measure."""
        self._due = time.monotonic() + INTERVAL_SECONDS
        self._timer = self._loop.call_later(INTERVAL_SECONDS, self._look)

    def stop(self) -> None:
        """Measure no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._load.lag = 0.0

    def _look(self) -> None:
        late = max(0.0, time.monotonic() - self._due)
        self._latency.observe(late)
        self._load.lag = max(late, self._load.lag * FADING)
        over = self._load.lag > self._limit
        if over and not self._over:
            log.warning("event-loop lag %.0f ms: new clients are refused", late * 1000)
        elif self._over and not over:
            log.warning("event-loop lag is over: clients are accepted again")
        self._over = over
        self.start()
