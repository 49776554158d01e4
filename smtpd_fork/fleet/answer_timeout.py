"""AnswerTimeout: limits how long messages and clients wait for an answer of the fleet."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["AnswerTimeout"]

TURNS = 4
"""Iterations of the loop after the timeout, before the answer is late: it may have arrived, and was
not read yet."""

HELD_UP_SECONDS = 0.05
"""If the timer is late by more than this, the loop was blocked or the process was stopped: the
message may not have been sent, and gets this time in addition."""


class AnswerTimeout:
    """Monitors the time of messages and questions that wait for an answer.

    :param waiting_since: returns since when the oldest one waits, in seconds; None: none waits
    :param on_late: called when the timeout is over
    :param on_expired: called when the lease is over as well
    :param timeout: seconds within which an answer is in time
    :param lease: seconds after which a message without an answer has failed
    :ivar overdue: whether the last answer was late, or the pending one is
    """

    def __init__(
        self,
        waiting_since: Callable[[], float | None],
        on_late: Callable[[], None],
        on_expired: Callable[[], None],
        timeout: float,
        lease: float,
    ) -> None:
        self._waiting_since = waiting_since
        self._on_late = on_late
        self._on_expired = on_expired
        self.timeout = timeout
        self.lease = lease
        self.overdue = False
        self._expected = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def seconds(self) -> float:
        """The timeout in use: at most half of the lease, so that it ends before the lease does."""
        return min(self.timeout, self.lease / 2)

    def watch(self) -> None:
        """Start the timer, unless it runs."""
        if self._timer is None:
            self._schedule(self.seconds)

    def end(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _schedule(self, seconds: float, turns: int = TURNS) -> None:
        self._expected = time.monotonic() + seconds
        self._timer = asyncio.get_running_loop().call_later(seconds, self._check, turns)

    def _check(self, turns: int) -> None:
        self._timer = None
        since, now = self._waiting_since(), time.monotonic()
        if since is None:
            return
        left = since + (self.lease if self.overdue else self.seconds) - now
        if left > 0:
            self._schedule(left)
        elif turns == TURNS and now - self._expected > HELD_UP_SECONDS:
            self._schedule(HELD_UP_SECONDS, turns - 1)
        elif turns:
            self._schedule(0, turns - 1)
        elif not self.overdue:
            self._on_late()
        else:
            self._on_expired()
