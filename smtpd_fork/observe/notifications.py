"""Notifications: messages to the service manager about the daemon's state, by sd_notify(3).

The daemon sends ``READY=1`` when it serves, ``RELOADING=1`` and ``STOPPING=1`` at a reload and a
stop, and a ``STATUS=`` line when its content has changed. A timer of the event loop that serves
mail sends ``WATCHDOG=1``, so that the manager detects an event loop that hangs.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Protocol

from smtpd_fork.daemon.sd_notify import Notifier, monotonic_usec
from smtpd_fork.observe.service import Service

if TYPE_CHECKING:
    from smtpd_fork.config import DaemonConfig
    from smtpd_fork.gate import Limits

__all__ = ["Notifications"]

log = logging.getLogger("smtpd_fork.daemon")

STATUS_SECONDS = 5.0
"""Time between two updates of the status, which only people read."""

MIN_WATCHDOG_SECONDS = 0.01
"""Minimum time between two ``WATCHDOG=1``."""

EXTEND_USEC = 15_000_000
"""Time that each message during a stop requests: three times STATUS_SECONDS."""


class SessionGate(Protocol):
    """The attributes of a gate that the status shows."""

    @property
    def count(self) -> int:
        """Number of current sessions."""

    @property
    def limits(self) -> Limits:
        """The limits in force."""


class Notifications(Service):
    """Sends the state of the daemon to the service manager."""

    def __init__(self, notifier: Notifier, gate: SessionGate) -> None:
        self._notifier = notifier
        self._gate = gate
        self._activity = ""
        self._sent = ""
        self._unsent: dict[str, object] = {}
        self._failed = False
        self._stopping = False
        self._watchdog_timer: asyncio.TimerHandle | None = None
        self._status_timer: asyncio.TimerHandle | None = None

    # -- the daemon's life ---------------------------------------------------------------------

    async def serving(self) -> None:
        """Send ``READY=1``, and start the timers of the watchdog and the status."""
        self._notify({**self._notifier.main_pid, "READY": 1})
        if self._notifier.watchdog is not None:
            self._send_watchdog()
        self._refresh()

    async def reloading(self) -> None:
        """Send ``RELOADING=1``."""
        self._activity = "reloading: "
        self._notify({"RELOADING": 1, "MONOTONIC_USEC": monotonic_usec()})

    async def reloaded(self, config: DaemonConfig) -> None:
        """Send ``READY=1``."""
        self._activity = ""
        self._notify({"READY": 1})

    async def stopping(self) -> None:
        """Send ``STOPPING=1``, and request time until the stop has ended."""
        self._activity = "stopping: "
        self._stopping = True
        self._notify({"STOPPING": 1, "EXTEND_TIMEOUT_USEC": EXTEND_USEC})

    async def handed_over(self, pid: int) -> None:
        """Send the process id of the new process, which sends all further messages."""
        self._notify({"MAINPID": pid})
        await self.stop()

    async def stop(self) -> None:
        """Stop sending messages."""
        for timer in (self._watchdog_timer, self._status_timer):
            if timer is not None:
                timer.cancel()
        self._watchdog_timer = self._status_timer = None

    # -- timers --------------------------------------------------------------------------------

    def _send_watchdog(self) -> None:
        """Send ``WATCHDOG=1``, twice per watchdog timeout as sd_watchdog_enabled(3) recommends."""
        assert self._notifier.watchdog is not None
        self._send({"WATCHDOG": 1})
        seconds = max(self._notifier.watchdog / 2, MIN_WATCHDOG_SECONDS)
        self._watchdog_timer = asyncio.get_running_loop().call_later(seconds, self._send_watchdog)

    def _refresh(self) -> None:
        """Send the status if it has changed, and fields that could not be sent before."""
        fields: dict[str, object] = {}
        if self._stopping:
            fields["EXTEND_TIMEOUT_USEC"] = EXTEND_USEC
        if self._status() != self._sent or self._unsent or fields:
            self._notify(fields)
        loop = asyncio.get_running_loop()
        self._status_timer = loop.call_later(STATUS_SECONDS, self._refresh)

    def _status(self) -> str:
        limit = self._gate.limits.limit_connections
        return f"{self._activity}{self._gate.count} of {limit} sessions"

    # -- messages ------------------------------------------------------------------------------

    def _notify(self, fields: dict[str, object]) -> None:
        """Send *fields* and the status; if that fails, send them with the next message."""
        status = self._status()
        fields = {**self._unsent, **fields, "STATUS": status}
        if self._send(fields):
            self._unsent, self._sent = {}, status
        else:
            self._unsent = {**fields}

    def _send(self, fields: dict[str, object]) -> bool:
        try:
            self._notifier.send(fields)
        except BlockingIOError:
            return False  # the manager is slow, which is not an error yet
        except OSError as error:
            if not self._failed:
                self._failed = True
                log.warning("cannot notify the service manager: %s", error.strerror)
            return False
        self._failed = False
        return True
