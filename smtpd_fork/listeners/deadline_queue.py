"""DeadlineQueue: waiting clients in order of arrival, all with the same time limit."""

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
    """Maps waiting clients to the times of their arrival, in order of arrival.

    The time limit is the same for all clients, so this is also the order of their deadlines.

    :param seconds: the time limit; ``math.inf`` for none
    :param expired: called with the clients whose time limit has passed, after their removal
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
        """Add a client at the end; its time begins now."""
        self[client] = self._loop.time()
        if self._timer is None:
            self._set_timer()

    def change(self, seconds: float) -> None:
        """Change the time limit, also for clients that already wait."""
        self._seconds = seconds
        self._clear_timer()
        self._set_timer()

    def clear(self) -> None:
        """Remove all clients without calling *expired*."""
        super().clear()
        self._clear_timer()

    def deadline(self, client: T) -> float:
        """Return the deadline of a client, by the clock of the event loop."""
        return self[client] + self._seconds

    def _set_timer(self) -> None:
        if self and self._seconds < math.inf:
            self._timer = self._loop.call_at(self.deadline(next(iter(self))), self._on_timer)

    def _clear_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timer(self) -> None:
        self._timer = None
        now = self._loop.time()
        due = list(takewhile(lambda client: self.deadline(client) <= now, self))
        for client in due:
            del self[client]
        self._set_timer()
        if due:
            self._expired(due)
