"""Sweep: one task looks after every session's deadline.

A deadline is a number on the session. Setting one costs an assignment, where a timer of its own
for each command would be cancelled and armed again a million times, mostly for nothing.

It is a task, so that cancelling all tasks of a loop, as asyncio.run() and aiosmtpd's
Controller do, ends the sessions as well: an idle session has no task of its own.
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
"""Seconds between two looks: a twentieth of the shortest time limit, within these."""


class Sweep:
    """Watches sessions of one loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.then: Callable[[float], None] | None = None  # is called after each look
        self._seconds = COARSEST
        self._sessions: dict[Connection, None] = {}  # a large set takes three times as much
        self._task: asyncio.Task[None] | None = None

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> Sweep:
        """Return the one that looks after the sessions of *loop* that no server has made."""
        if loop not in _of_loop:
            _of_loop[loop] = cls(loop)
        return _of_loop[loop]

    def look_for(self, shortest: float) -> None:
        """Shorten the interval, so that a limit of *shortest* seconds is kept."""
        seconds = max(FINEST, shortest / 20)
        if seconds < self._seconds:
            self._seconds = seconds
            if self._task is not None:  # it sleeps for longer than that
                task, self._task = self._task, None
                task.cancel()
                self._task = self.loop.create_task(self._look())

    def watch(self, session: Connection) -> None:
        """Watch *session* until :meth:`forget`."""
        self._sessions[session] = None
        if self._task is None:
            self._task = self.loop.create_task(self._look())

    def forget(self, session: Connection) -> None:
        """Stop watching *session*; no error if it is not watched."""
        self._sessions.pop(session, None)

    async def stop(self) -> None:
        """Stop watching all sessions; they go on without deadlines."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _look(self) -> None:
        try:
            while self._sessions:
                await asyncio.sleep(self._seconds)
                now = self.loop.time()
                late = [s for s in self._sessions if s.deadline <= now or s.ends_at <= now]
                for session in late:
                    session.expired(now)
                if self.then is not None:
                    self.then(now)
            self._task = None
        except asyncio.CancelledError:
            if self._task is asyncio.current_task():  # not by stop(): the loop is ending
                for session in list(self._sessions):
                    session.cut()
            raise


_of_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, Sweep] = WeakKeyDictionary()
