"""Episodes: the times during which the fleet is out of reach.

An episode gets a log line when it begins and one when it ends.
"""

from __future__ import annotations

import logging
import math
from enum import StrEnum
from typing import Literal

from smtpd_fork.units import counted

__all__ = ["WITHOUT_FLEET", "Episodes", "State"]

log = logging.getLogger("smtpd_fork.fleet")

QUIET_SECONDS = 60.0
"""Minimum interval of log lines. An episode that begins earlier is logged only if it lasts until
the interval is over; else it is counted in the line at the end of a later one."""


WITHOUT_FLEET = {
    "local": "the limits of this node apply",
    "refuse": "new clients get 421 (--when-fleet-down refuse)",
}
"""The effect of an episode on clients, by the setting ``when_fleet_down``."""


class State(StrEnum):
    """The state of the fleet, as this node sees it. Only in state UP are questions sent."""

    DOWN = "down"
    LATE = "late"
    UP = "up"


class Episodes:
    """Counts and logs episodes: each lasts from the first error to the first answer in time.

    :ivar when_down: the setting ``when_fleet_down``
    :ivar count: number of episodes
    :ivar reason: the last error of the current episode; empty: there is no episode
    :ivar since: when the last episode began, in seconds of the monotonic clock
    """

    def __init__(self, when_down: Literal["local", "refuse"] = "local") -> None:
        self.when_down = when_down
        self.count = 0
        self.reason = ""
        self.since = 0.0
        self._logged_at = -math.inf
        self._logged = ""  # the last reason of the current episode that was logged
        self._unlogged = 0  # episodes that have ended without a line
        self._clients = 0

    def begin(self, reason: str, now: float) -> None:
        """Begin an episode, or continue the current one with another error."""
        if not self.reason:
            self.count += 1
            self.since, self._clients, self._logged = now, 0, ""
        self.reason = reason
        if reason != self._logged and now - self._logged_at >= QUIET_SECONDS:
            still = "still " if self._logged else ""
            meanwhile = WITHOUT_FLEET[self.when_down]
            log.error("fleet %sout of reach, %s: %s", still, meanwhile, reason)
            self._logged, self._logged_at = reason, now
        else:
            log.debug("the fleet: %s", reason)

    def admitted(self) -> None:
        """Count a client that was admitted without the fleet."""
        self._clients += 1

    def end(self, now: float, nodes: int) -> None:
        """End the current episode, if there is one: the fleet answers."""
        if not self.reason:
            return
        self.reason = ""
        if not self._logged:
            self._unlogged += 1
            if now - self._logged_at < QUIET_SECONDS:
                return  # the line at the end of a later episode counts this one
        times = self._unlogged + bool(self._logged)
        more = f", the last of {counted(times, 'time')}" if times > 1 else ""
        self._logged_at, self._unlogged = now, 0
        log.warning(
            "fleet in reach again after %.1f s%s: %s, %s admitted meanwhile",
            now - self.since,
            more,
            counted(nodes, "node"),
            counted(self._clients, "client"),
        )
