"""Keeper: keeps one of the processes of a supervisor running.

A process that ends without an order is replaced: at once, or after a pause that grows while one
after another ends right after its start. In an upgrade a keeper rests: its process accepts no
more and ends with its last session. If the upgrade fails, that process accepts again, or another
one is started.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Protocol

from smtpd_fork.errors import SmtpdForkError
from smtpd_fork.supervisor.serving_process import ServingProcess, described

if TYPE_CHECKING:
    from smtpd_fork.supervisor.serving_process import Start

__all__ = ["Keeper", "Watcher"]

log = logging.getLogger("smtpd_fork.daemon")

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 5.0
"""Before another process is started, if the one before it ended soon after its start."""

SOON_SECONDS = 10.0


class Watcher(Protocol):
    """Takes note of what becomes of the processes."""

    def begins(self, process: ServingProcess) -> None:
        """Take note that a process serves in place of another one."""

    def ended(self, process: ServingProcess, status: int) -> bool:
        """Take note of an end; return whether to replace it, unless the end was ordered."""


class Keeper:
    """Keeps process *number*.

    :ivar process: that serves, or is ready to; None: there is none at the moment
    :ivar rests: whether no process is to accept
    """

    def __init__(self, number: int, start: Start, watcher: Watcher) -> None:
        self.number = number
        self.process: ServingProcess | None = None
        self.rests = False
        self._start = start
        self._watcher = watcher
        self._task: asyncio.Task[None] | None = None
        self._tried = asyncio.Event()

    @property
    def accepts(self) -> bool:
        """Whether its process accepts clients, as far as is known."""
        return self._task is not None and self.process is not None and not self.rests

    async def start(self) -> None:
        """Start the first process, which does not serve yet.

        :raises SmtpdForkError: it cannot start
        """
        self.process = await ServingProcess.start(self.number, self._start)

    def serve(self) -> None:
        """Have the process serve, and keep it; without one, start one. No error if it serves."""
        if self._task is not None and not self._task.done():
            return
        if self.process is not None:
            self.process.serve()
        self._task = asyncio.ensure_future(self._keep(self.process))
        self._task.add_done_callback(lambda _: self._tried.set())

    def rest(self) -> None:
        """Accept no more."""
        self.rests = True
        if self.process is not None:
            self.process.tell("rest")
        elif self._task is not None:
            self._task.cancel()

    async def resume(self) -> None:
        """Accept again; return once it does, or cannot start a process."""
        if not self.rests:
            return
        self.rests = False
        if self.process is not None:
            self.process.tell("resume")
            return
        await self.done(None)  # it may still be cancelled
        self._tried.clear()
        self.serve()
        await self._tried.wait()

    def end(self, word: str) -> None:
        """Tell the process to end; it is not replaced any more."""
        if self.process is not None:
            self.process.end(word)
        elif self._task is not None:  # another process is being started
            self._task.cancel()

    async def kill(self) -> None:
        """End the process at once, and wait for that."""
        if self.process is not None:
            self.process.kill()
            await self.process.ended()
        await self.done(None)
        self.process = None

    async def done(self, seconds: float | None) -> None:
        """Wait until there is no process, and will be none, for so long at most."""
        if self._task is not None:
            await asyncio.wait([self._task], timeout=seconds)

    async def _keep(self, process: ServingProcess | None) -> None:
        """Replace *process*, and those after it, until they are ordered to end."""
        pause = 0.0
        while True:
            if process is None:
                process = await self._another(pause)
            status = await process.ended()
            self.process = None
            wanted = self._watcher.ended(process, status)
            if process.leaving or not wanted:
                return
            if self.rests:
                if status:
                    log.error("%s ended %s", process, described(status))
                return
            log.error("%s ended %s: starting another one", process, described(status))
            soon = asyncio.get_running_loop().time() - process.began < SOON_SECONDS
            pause = _longer(pause) if soon else 0.0
            process = None

    async def _another(self, pause: float) -> ServingProcess:
        while True:
            await asyncio.sleep(pause)
            try:
                process = await ServingProcess.start(self.number, self._start)
            except SmtpdForkError as error:
                pause = _longer(pause)
                text = "process %d cannot start: %s; trying again in %g s"
                log.error(text, self.number, error, pause)  # noqa: TRY400 - one line
                self._tried.set()
                continue
            self.process = process
            process.serve()
            self._watcher.begins(process)
            self._tried.set()
            return process


def _longer(pause: float) -> float:
    return min(max(2 * pause, FIRST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS)
