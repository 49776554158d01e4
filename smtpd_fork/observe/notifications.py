"""Notifications of the service manager about the daemon's state, by sd_notify(3).

``READY=1`` once it serves, ``RELOADING=1`` and ``STOPPING=1`` at a reload and a stop, and now and
then a ``STATUS=`` line for people. ``WATCHDOG=1`` comes from a timer of the event loop that serves:
if the loop hangs, the manager finds out.
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
"""Time between two updates of the status; people read it."""

SHORTEST_BEAT = 0.01
"""Seconds between two ``WATCHDOG=1`` at least."""

EXTEND_USEC = 15_000_000
"""Time that each message of a stop asks for: three times STATUS_SECONDS."""


class Occupied(Protocol):
    """A gate, as far as the status has it."""

    @property
    def count(self) -> int:
        """Sessions at once."""

    @property
    def limits(self) -> Limits:
        """The limits in force."""


class Notifications(Service):
    """Notifies the service manager."""

    def __init__(self, notifier: Notifier, gate: Occupied) -> None:
        self._notifier = notifier
        self._gate = gate
        self._doing = ""
        self._sent = ""
        self._unsent: dict[str, object] = {}
        self._lost = False
        self._stopping = False
        self._timer: asyncio.TimerHandle | None = None
        self._status_timer: asyncio.TimerHandle | None = None

    # -- the daemon's life ---------------------------------------------------------------------

    async def serving(self) -> None:
        """Send ``READY=1``, and begin with the watchdog and the status."""
        self._notify({**self._notifier.main_pid, "READY": 1})
        if self._notifier.watchdog is not None:
            self._beat()
        self._refresh()

    async def reloading(self) -> None:
        """Send ``RELOADING=1``."""
        self._doing = "reloading: "
        self._notify({"RELOADING": 1, "MONOTONIC_USEC": monotonic_usec()})

    async def reloaded(self, config: DaemonConfig) -> None:
        """Send ``READY=1``."""
        self._doing = ""
        self._notify({"READY": 1})

    async def stopping(self) -> None:
        """Send ``STOPPING=1``, and ask for time until the stop has ended."""
        self._doing = "stopping: "
        self._stopping = True
        self._notify({"STOPPING": 1, "EXTEND_TIMEOUT_USEC": EXTEND_USEC})

    async def handed_over(self, pid: int) -> None:
        """Send the process id of the new process, which sends its own messages from now on."""
        self._notify({"MAINPID": pid})
        await self.stop()

    async def stop(self) -> None:
        """Send no more."""
        for timer in (self._timer, self._status_timer):
            if timer is not None:
                timer.cancel()
        self._timer = self._status_timer = None

    # -- timers --------------------------------------------------------------------------------

    def _beat(self) -> None:
        """Send ``WATCHDOG=1``, twice in the time of the watchdog: sd_watchdog_enabled(3)."""
        assert self._notifier.watchdog is not None
        self._send({"WATCHDOG": 1})
        seconds = max(self._notifier.watchdog / 2, SHORTEST_BEAT)
        self._timer = asyncio.get_running_loop().call_later(seconds, self._beat)

    def _refresh(self) -> None:
        """Send the status if it has changed, and what could not be sent before."""
        fields: dict[str, object] = {}
        if self._stopping:
            fields["EXTEND_TIMEOUT_USEC"] = EXTEND_USEC
        if self._status() != self._sent or self._unsent or fields:
            self._notify(fields)
        loop = asyncio.get_running_loop()
        self._status_timer = loop.call_later(STATUS_SECONDS, self._refresh)

    def _status(self) -> str:
        return f"{self._doing}{self._gate.count} of {self._gate.limits.limit_connections} sessions"

    # -- messages ------------------------------------------------------------------------------

    def _notify(self, fields: dict[str, object]) -> None:
        """Send *fields* and the status; what cannot be sent now comes with the next message."""
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
            return False  # the manager is slow, which is no fault yet
        except OSError as error:
            if not self._lost:
                self._lost = True
                log.warning("cannot notify the service manager: %s", error.strerror)
            return False
        self._lost = False
        return True
