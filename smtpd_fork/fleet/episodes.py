"""Episodes: the times without the fleet; one line at the begin of one, and one at its end."""

from __future__ import annotations

import logging
import math
from enum import StrEnum
from typing import Literal

from smtpd_fork.units import counted

__all__ = ["WITHOUT_FLEET", "Episodes", "State"]

log = logging.getLogger("smtpd_fork.fleet")

QUIET_SECONDS = 60.0
"""So soon after a line, an episode is logged only if it lasts for longer, or when a later one
ends; and another reason only after that time."""


WITHOUT_FLEET = {
    "local": "the limits of this node apply",
    "refuse": "new clients get 421 (--when-fleet-down refuse)",
}
"""What happens meanwhile, by the setting ``when_fleet_down``."""


class State(StrEnum):
    """Whether a client can be asked about."""

    DOWN = "down"
    LATE = "late"
    UP = "up"


class Episodes:
    """The times without the fleet, from the first sign of trouble to the first answer in time.

    :ivar when_down: what happens meanwhile
    :ivar count: of them
    :ivar reason: of the one that goes on, the last that was given; empty: none does
    :ivar since: when the last one began, in seconds
    """

    def __init__(self, when_down: Literal["local", "refuse"] = "local") -> None:
        self.when_down = when_down
        self.count = 0
        self.reason = ""
        self.since = 0.0
        self._told_at = -math.inf
        self._told = ""  # the reason of the one that goes on, as it was logged last
        self._untold = 0
        self._clients = 0

    def begin(self, reason: str, now: float) -> None:
        """Take note of trouble, the first of an episode or more of it."""
        if not self.reason:
            self.count += 1
            self.since, self._clients, self._told = now, 0, ""
        self.reason = reason
        if reason != self._told and now - self._told_at >= QUIET_SECONDS:
            still = "still " if self._told else ""
            meanwhile = WITHOUT_FLEET[self.when_down]
            log.error("fleet %sout of reach, %s: %s", still, meanwhile, reason)
            self._told, self._told_at = reason, now
        else:
            log.debug("the fleet: %s", reason)

    def admitted(self) -> None:
        """Count a client that was admitted by the limits of this node alone."""
        self._clients += 1

    def end(self, now: float, nodes: int) -> None:
        """Take note that the fleet answers."""
        if not self.reason:
            return
        self.reason = ""
        if not self._told:
            self._untold += 1
            if now - self._told_at < QUIET_SECONDS:
                return  # told with the first one that ends later
        times = self._untold + bool(self._told)
        more = f", the last of {counted(times, 'time')}" if times > 1 else ""
        self._told_at, self._untold = now, 0
        log.warning(
            "fleet in reach again after %.1f s%s: %s, %s admitted meanwhile",
            now - self.since,
            more,
            counted(nodes, "node"),
            counted(self._clients, "client"),
        )
