"""Idle: unused connections, which are closed after some seconds."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Idle"]

Connection = TypeVar("Connection")


class Idle(Generic[Connection]):
    """Unused connections, in the order of their last use.

    One timer serves all of them and is set for the oldest one, so that a connection that is used
    again and again needs no timer of its own.

    :param seconds: seconds that an unused connection is kept
    :param end: closes a connection, after it was removed
    """

    def __init__(self, seconds: float, end: Callable[[Connection], object]) -> None:
        self._seconds = seconds
        self._end = end
        self._since: dict[Connection, float] = {}  # in the time of the loop
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._since)

    def __contains__(self, connection: Connection) -> bool:
        return connection in self._since

    def add(self, connection: Connection) -> None:
        """Add a connection that has become unused."""
        loop = asyncio.get_running_loop()
        self._since[connection] = loop.time()
        if self._timer is None:
            self._timer = loop.call_later(self._seconds, self._end_expired)

    def discard(self, connection: Connection) -> None:
        """Remove a connection, if present, without closing it."""
        self._since.pop(connection, None)

    def take(self) -> Connection | None:
        """Remove and return the connection that was used last; None if there is none."""
        return self._since.popitem()[0] if self._since else None

    def end_first(self) -> None:
        """Close the connection that has been unused for the longest time."""
        first = next(iter(self._since))
        del self._since[first]
        self._end(first)

    def end_all(self) -> None:
        """Close all connections."""
        while self._since:
            self.end_first()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end_expired(self) -> None:
        """Close the connections whose time has expired, and set the timer for the next one."""
        self._timer = None
        loop = asyncio.get_running_loop()
        while self._since:
            at = next(iter(self._since.values())) + self._seconds
            if at > loop.time():
                self._timer = loop.call_at(at, self._end_expired)
                return
            self.end_first()
