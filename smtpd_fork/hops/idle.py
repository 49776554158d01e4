"""Idle: connections that nobody needs now, each of which is ended after some seconds."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Idle"]

Connection = TypeVar("Connection")


class Idle(Generic[Connection]):
    """Connections that nobody needs now, in the order in which they were used last.

    There is one timer for all of them, for that of the first one: a connection that is used again
    and again costs none.

    :param seconds: how long each is kept
    :param end: ends one, which is in here no more
    """

    def __init__(self, seconds: float, end: Callable[[Connection], object]) -> None:
        self._seconds = seconds
        self._end = end
        self._since: dict[Connection, float] = {}  # the loop's time
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._since)

    def __contains__(self, connection: Connection) -> bool:
        return connection in self._since

    def add(self, connection: Connection) -> None:
        """Keep a connection."""
        loop = asyncio.get_running_loop()
        self._since[connection] = loop.time()
        if self._timer is None:
            self._timer = loop.call_later(self._seconds, self._look)

    def discard(self, connection: Connection) -> None:
        """Take a connection out, if it is in here."""
        self._since.pop(connection, None)

    def take(self) -> Connection | None:
        """Take out the one that was used last."""
        return self._since.popitem()[0] if self._since else None

    def end_first(self) -> None:
        """End the one that has been in here for the longest time."""
        first = next(iter(self._since))
        del self._since[first]
        self._end(first)

    def end_all(self) -> None:
        """End all."""
        while self._since:
            self.end_first()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        """End those whose time is over."""
        self._timer = None
        loop = asyncio.get_running_loop()
        while self._since:
            at = next(iter(self._since.values())) + self._seconds
            if at > loop.time():
                self._timer = loop.call_at(at, self._look)
                return
            self.end_first()
