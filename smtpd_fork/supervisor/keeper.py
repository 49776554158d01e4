"""Keeper: keeps one of the processes of a supervisor running.

A process that ends without an order is restarted. The restart is immediate; if processes keep
ending soon after their start, it is delayed, each time for longer. In an upgrade the keeper makes
its process drain: the process stops accepting clients, and ends with its last session. If the
upgrade fails, this process accepts clients again; if it has ended, another one is started.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Protocol

from smtpd_fork.errors import SmtpdForkError
from smtpd_fork.supervisor.serving_process import ServingProcess, describe_exit

if TYPE_CHECKING:
    from smtpd_fork.supervisor.serving_process import Start

__all__ = ["Keeper", "Watcher"]

log = logging.getLogger("smtpd_fork.daemon")

FIRST_DELAY_SECONDS = 0.1
LONGEST_DELAY_SECONDS = 5.0
"""Delay before a restart, if the process has ended soon after its start."""

SOON_SECONDS = 10.0
"""A process that ends within this time after its start has ended soon."""


class Watcher(Protocol):
    """Is notified of the starts and ends of processes."""

    def process_replaced(self, process: ServingProcess) -> None:
        """Handle the start of a process that replaces one that has ended."""

    def process_ended(self, process: ServingProcess, status: int) -> bool:
        """Handle the end of a process; return whether an unexpected end leads to a restart."""


class Keeper:
    """Keeps process *number* running.

    :ivar process: the process that serves, or is ready to serve; None: there is none at the moment
    :ivar draining: whether the process is to accept no clients
    """

    def __init__(self, number: int, start: Start, watcher: Watcher) -> None:
        self.number = number
        self.process: ServingProcess | None = None
        self.draining = False
        self._start = start
        self._watcher = watcher
        self._task: asyncio.Task[None] | None = None
        self._tried = asyncio.Event()

    @property
    def accepts(self) -> bool:
        """Whether the process accepts clients, as far as the supervisor knows."""
        return self._task is not None and self.process is not None and not self.draining

    async def start(self) -> None:
        """Start the first process. It accepts no clients until :meth:`serve`.

        :raises SmtpdForkError: the process cannot start
        """
        self.process = await ServingProcess.start(self.number, self._start)

    def serve(self) -> None:
        """Make the process serve, and keep it running; start one if there is none.

        A second call has no effect.
        """
        if self._task is not None and not self._task.done():
            return
        if self.process is not None:
            self.process.serve()
        self._task = asyncio.ensure_future(self._keep(self.process))
        self._task.add_done_callback(lambda _: self._tried.set())

    def stop_accepting(self) -> None:
        """Make the process stop accepting clients and end with its last session."""
        self.draining = True
        if self.process is not None:
            self.process.notify("rest")
        elif self._task is not None:
            self._task.cancel()

    async def resume(self) -> None:
        """Revert :meth:`stop_accepting`.

        Returns when the process accepts clients, or another process has started or failed to start.
        """
        if not self.draining:
            return
        self.draining = False
        if self.process is not None:
            self.process.notify("resume")
            return
        await self.done(None)  # the cancelled task may not have ended yet
        self._tried.clear()
        self.serve()
        await self._tried.wait()

    def end(self, order: str) -> None:
        """Order the process to end; it is not restarted.

        :param order: see :meth:`ServingProcess.end`
        """
        if self.process is not None:
            self.process.end(order)
        elif self._task is not None:  # another process is being started
            self._task.cancel()

    async def kill(self) -> None:
        """Kill the process, and wait for its end."""
        if self.process is not None:
            self.process.kill()
            await self.process.ended()
        await self.done(None)
        self.process = None

    async def done(self, seconds: float | None) -> None:
        """Wait until the process has ended and is not restarted.

        :param seconds: timeout; None: no timeout
        """
        if self._task is not None:
            await asyncio.wait([self._task], timeout=seconds)

    async def _keep(self, process: ServingProcess | None) -> None:
        """Restart *process*, and each process after it, until one gets an order to end."""
        delay = 0.0
        while True:
            if process is None:
                process = await self._restart(delay)
            status = await process.ended()
            self.process = None
            restart = self._watcher.process_ended(process, status)
            if process.leaving or not restart:
                return
            if self.draining:
                if status:
                    log.error("%s ended %s", process, describe_exit(status))
                return
            log.error("%s ended %s: starting another one", process, describe_exit(status))
            soon = asyncio.get_running_loop().time() - process.began < SOON_SECONDS
            delay = _next_delay(delay) if soon else 0.0
            process = None

    async def _restart(self, delay: float) -> ServingProcess:
        while True:
            await asyncio.sleep(delay)
            try:
                process = await ServingProcess.start(self.number, self._start)
            except SmtpdForkError as error:
                delay = _next_delay(delay)
                text = "process %d cannot start: %s; trying again in %g s"
                log.error(text, self.number, error, delay)  # noqa: TRY400 - one line
                self._tried.set()
                continue
            self.process = process
            process.serve()
            self._watcher.process_replaced(process)
            self._tried.set()
            return process


def _next_delay(delay: float) -> float:
    return min(max(2 * delay, FIRST_DELAY_SECONDS), LONGEST_DELAY_SECONDS)
