"""Sweep: one task checks the deadlines of all sessions.

A deadline is an attribute of the session, which costs an assignment to set. With a timer for each
session, every command would cancel a timer and create another one, mostly for nothing.

It is a task, so that asyncio.run() and aiosmtpd's Controller, which cancel all tasks of a loop, end
the sessions as well: an idle session has no task of its own.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from collections.abc import Callable

    from smtpd_fork.smtp.connection import Connection

__all__ = ["Sweep"]

COARSEST = 1.0
FINEST = 0.01
"""Limits of the interval of the checks, in seconds; it is a twentieth of the shortest time
limit."""


class Sweep:
    """Checks the deadlines of the sessions of one loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.after_check: Callable[[float], None] | None = None  # called after each check
        self._seconds = COARSEST
        self._sessions: dict[Connection, None] = {}  # a large set would take three times the memory
        self._task: asyncio.Task[None] | None = None

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> Sweep:
        """Return the object for sessions of *loop* that do not belong to a server."""
        if loop not in _of_loop:
            _of_loop[loop] = cls(loop)
        return _of_loop[loop]

    def set_shortest_limit(self, shortest: float) -> None:
        """Shorten the interval if a time limit of *shortest* seconds needs it."""
        seconds = max(FINEST, shortest / 20)
        if seconds < self._seconds:
            self._seconds = seconds
            if self._task is not None:  # it sleeps too long
                task, self._task = self._task, None
                task.cancel()
                self._task = self.loop.create_task(self._check())

    def watch(self, session: Connection) -> None:
        """Check *session* until :meth:`forget`."""
        self._sessions[session] = None
        if self._task is None:
            self._task = self.loop.create_task(self._check())

    def forget(self, session: Connection) -> None:
        """Stop checking *session*; no error if it is not checked."""
        self._sessions.pop(session, None)

    async def stop(self) -> None:
        """Stop all checks; the sessions continue without deadlines."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _check(self) -> None:
        try:
            while self._sessions:
                await asyncio.sleep(self._seconds)
                now = self.loop.time()
                late = [s for s in self._sessions if s.deadline <= now or s.ends_at <= now]
                for session in late:
                    session.expired(now)
                if self.after_check is not None:
                    self.after_check(now)
            self._task = None
        except asyncio.CancelledError:
            if self._task is asyncio.current_task():  # cancelled, but not by stop(): the loop ends
                for session in list(self._sessions):
                    session.cut()
            raise


_of_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, Sweep] = WeakKeyDictionary()
