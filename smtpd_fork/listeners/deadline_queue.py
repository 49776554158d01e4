"""DeadlineQueue: clients that wait, first come, first served, all with the same time limit."""

from __future__ import annotations

import math
from collections import OrderedDict
from itertools import takewhile
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

__all__ = ["DeadlineQueue"]

T = TypeVar("T")


class DeadlineQueue(OrderedDict[T, float]):
    """Since when clients wait, in the order in which they came: that of their deadlines.

    :param seconds: how long each may wait; ``math.inf`` is for ever
    :param expired: gets the clients whose time is up, which wait no longer
    """

    def __init__(
        self,
        seconds: float,
        loop: asyncio.AbstractEventLoop,
        expired: Callable[[list[T]], None],
    ) -> None:
        super().__init__()
        self._seconds = seconds
        self._loop = loop
        self._expired = expired
        self._timer: asyncio.TimerHandle | None = None

    def add(self, client: T) -> None:
        """Have a client wait from now on, behind all others."""
        self[client] = self._loop.time()
        if self._timer is None:
            self._set_timer()

    def change(self, seconds: float) -> None:
        """Have another time limit, also for those who wait already."""
        self._seconds = seconds
        self._clear_timer()
        self._set_timer()

    def clear(self) -> None:
        """End all waits."""
        super().clear()
        self._clear_timer()

    def deadline(self, client: T) -> float:
        """Return when a client's time is up, by the loop's clock."""
        return self[client] + self._seconds

    def _set_timer(self) -> None:
        if self and self._seconds < math.inf:
            self._timer = self._loop.call_at(self.deadline(next(iter(self))), self._due)

    def _clear_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _due(self) -> None:
        self._timer = None
        now = self._loop.time()
        due = list(takewhile(lambda client: self.deadline(client) <= now, self))
        for client in due:
            del self[client]
        self._set_timer()
        if due:
            self._expired(due)
