"""Episodes: one line when the fleet goes out of reach, and one when it is back."""

from __future__ import annotations

import logging
import math

from smtpd_fork.units import counted

__all__ = ["Episodes"]

log = logging.getLogger("smtpd_fork.fleet")

QUIET_SECONDS = 60.0
"""An episode that begins so soon after the last one is told only when it ends, with the others."""


class Episodes:
    """The times without the fleet, from the first sign of trouble to the first answer in time.

    :ivar count: of them
    :ivar reason: of the one that goes on; empty: none does
    """

    def __init__(self) -> None:
        self.count = 0
        self.reason = ""
        self._since = 0.0
        self._told = -math.inf
        self._untold = 0
        self._clients = 0

    def begin(self, reason: str, now: float) -> None:
        """Take note of trouble; only the first reason of an episode is told."""
        if self.reason:
            log.debug("the fleet: %s", reason)
            return
        self.reason, self._since, self._clients = reason, now, 0
        self.count += 1
        if now - self._told < QUIET_SECONDS:
            self._untold += 1
        else:
            self._told = now
            log.error("fleet out of reach, the limits of this node apply: %s", reason)

    def admitted(self) -> None:
        """Count a client that was admitted by the limits of this node alone."""
        self._clients += 1

    def end(self, now: float, nodes: int) -> None:
        """Take note that the fleet answers."""
        if not self.reason:
            return
        self.reason = ""
        if self._untold and now - self._told < QUIET_SECONDS:
            return  # told with the first one that ends later
        more = f", the last of {counted(self._untold + 1, 'time')}" if self._untold else ""
        self._told, self._untold = now, 0
        log.warning(
            "fleet in reach again after %.1f s%s: %s, %s admitted meanwhile",
            now - self._since,
            more,
            counted(nodes, "node"),
            counted(self._clients, "client"),
        )
