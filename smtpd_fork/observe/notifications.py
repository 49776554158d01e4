"""Notifications: the daemon's word to the service manager that started it, sd_notify(3).

``READY=1`` once it serves, ``RELOADING=1`` and ``STOPPING=1`` when it does, and between them a
``STATUS=`` line for people. The watchdog is patted by a timer of the loop that serves: where that
loop hangs, nobody pats, and the manager finds out.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from smtpd_fork.daemon.notify import monotonic_usec
from smtpd_fork.observe.service import Service

if TYPE_CHECKING:
    from smtpd_fork.config import DaemonConfig
    from smtpd_fork.daemon.notify import Notifier
    from smtpd_fork.gate import Gate

__all__ = ["Notifications"]

log = logging.getLogger("smtpd_fork.daemon")

STATUS_SECONDS = 5.0
"""How often, at most, the status is told anew; people read it."""

SHORTEST_BEAT = 0.01
"""Seconds; a watchdog that wants more is not served faster."""

EXTEND_USEC = 15_000_000
"""By how much a stop asks for more time, each time: three times what lies between two."""


class Notifications(Service):
    """Tells the service manager.

    :param notifier: takes the messages
    :param gate: whose sessions are told of
    """

    def __init__(self, notifier: Notifier, gate: Gate) -> None:
        self._notifier = notifier
        self._gate = gate
        self._doing = ""
        self._told = ""
        self._unsent: dict[str, object] = {}
        self._lost = False
        self._stopping = False
        self._timer: asyncio.TimerHandle | None = None
        self._status_timer: asyncio.TimerHandle | None = None

    # -- what the daemon does ------------------------------------------------------------------

    async def serving(self) -> None:
        """Tell that it serves; from now on pat the watchdog."""
        self._tell({**self._notifier.main_pid, "READY": 1})
        if self._notifier.watchdog is not None:
            self._pat()
        self._refresh()

    async def reloading(self) -> None:
        """Tell that a reload has begun."""
        self._doing = "reloading: "
        self._tell({"RELOADING": 1, "MONOTONIC_USEC": monotonic_usec()})

    async def reloaded(self, config: DaemonConfig) -> None:
        """Tell that it has ended."""
        self._doing = ""
        self._tell({"READY": 1})

    async def stopping(self) -> None:
        """Tell that the stop has begun, and ask for time until it has ended."""
        self._doing = "stopping: "
        self._stopping = True
        self._tell({"STOPPING": 1, "EXTEND_TIMEOUT_USEC": EXTEND_USEC})

    async def handed_over(self, pid: int) -> None:
        """Tell who the daemon is from now on, and be silent: it speaks for itself."""
        self._tell({"MAINPID": pid})
        self._be_silent()

    async def stop(self) -> None:
        """Be silent."""
        self._be_silent()

    def _be_silent(self) -> None:
        for timer in (self._timer, self._status_timer):
            if timer is not None:
                timer.cancel()
        self._timer = self._status_timer = None

    # -- timers --------------------------------------------------------------------------------

    def _pat(self) -> None:
        """Pat the watchdog, twice in the time that it allows: sd_watchdog_enabled(3)."""
        assert self._notifier.watchdog is not None
        self._send({"WATCHDOG": 1})
        seconds = max(self._notifier.watchdog / 2, SHORTEST_BEAT)
        self._timer = asyncio.get_running_loop().call_later(seconds, self._pat)

    def _refresh(self) -> None:
        """Tell the status if there is something new, and what could not be told before."""
        fields: dict[str, object] = {}
        if self._stopping:
            fields["EXTEND_TIMEOUT_USEC"] = EXTEND_USEC
        if self._status() != self._told or self._unsent or fields:
            self._tell(fields)
        loop = asyncio.get_running_loop()
        self._status_timer = loop.call_later(STATUS_SECONDS, self._refresh)

    def _status(self) -> str:
        return f"{self._doing}{self._gate.count} of {self._gate.limits.limit_connections} sessions"

    # -- telling -------------------------------------------------------------------------------

    def _tell(self, fields: dict[str, object]) -> None:
        """Send *fields* with the status; what cannot be sent now comes with the next."""
        status = self._status()
        fields = {**self._unsent, **fields, "STATUS": status}
        if self._send(fields):
            self._unsent, self._told = {}, status
        else:
            self._unsent = {**fields}

    def _send(self, fields: dict[str, object]) -> bool:
        try:
            self._notifier.send(fields)
        except BlockingIOError:
            return False  # it is slow; nothing is wrong yet
        except OSError as error:
            if not self._lost:
                self._lost = True
                log.warning("the service manager cannot be told: %s", error.strerror)
            return False
        self._lost = False
        return True
