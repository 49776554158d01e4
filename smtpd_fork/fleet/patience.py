"""Patience: how long a message to the fleet, or a client, waits for the answer."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Patience"]

TURNS = 4
"""Of the loop, that a message whose time is over waits still: the answer may have come unread."""

HELD_UP_SECONDS = 0.05
"""So late, a loop was held up, or its process stopped: the message may not even have been sent, and
gets as long again."""


class Patience:
    """Watches the time of what waits for an answer.

    :param oldest: returns since when the oldest waits, in seconds; None: nothing waits
    :param late: called when the time limit is over
    :param over: called when the lease is over as well
    :param timeout: seconds in which an answer is in time
    :param lease: seconds after which an answer is not waited for any more
    :ivar overdue: whether the answer under way, or the last one, did not come in time
    """

    def __init__(
        self,
        oldest: Callable[[], float | None],
        late: Callable[[], None],
        over: Callable[[], None],
        timeout: float,
        lease: float,
    ) -> None:
        self._oldest = oldest
        self._late = late
        self._over = over
        self.timeout = timeout
        self.lease = lease
        self.overdue = False
        self._expected = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def seconds(self) -> float:
        """The time limit: slots that are held must not run out with the lease before it."""
        return min(self.timeout, self.lease / 2)

    def watch(self) -> None:
        """See to it that nothing waits for too long."""
        if self._timer is None:
            self._look_after(self.seconds)

    def end(self) -> None:
        """Watch no longer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_after(self, seconds: float, turns: int = TURNS) -> None:
        self._expected = time.monotonic() + seconds
        self._timer = asyncio.get_running_loop().call_later(seconds, self._look, turns)

    def _look(self, turns: int) -> None:
        self._timer = None
        oldest, now = self._oldest(), time.monotonic()
        if oldest is None:
            return
        left = oldest + (self.lease if self.overdue else self.seconds) - now
        if left > 0:
            self._look_after(left)
        elif turns == TURNS and now - self._expected > HELD_UP_SECONDS:
            self._look_after(HELD_UP_SECONDS, turns - 1)
        elif turns:
            self._look_after(0, turns - 1)
        elif not self.overdue:
            self._late()
        else:
            self._over()
