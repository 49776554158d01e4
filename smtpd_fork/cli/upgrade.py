"""Upgrade: SIGUSR2 starts a new process with the same command line, which replaces this one.

The new process inherits the listening sockets, which therefore stay open and keep their backlog:
clients that connect after the old process stops accepting, and before the new one starts, wait
there. This process changes nothing before the new process reports that it is ready. If the new
process never does, the upgrade has no effect, as it accepts no client before the old process
permits it. :mod:`smtpd_fork.daemon.handover` defines the messages.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
from collections.abc import Callable
from contextlib import ExitStack, suppress
from enum import Enum
from typing import TYPE_CHECKING

from smtpd_fork.daemon.handover import HANDOVER_VARIABLE, NO, YOURS
from smtpd_fork.errors import SmtpdForkError
from smtpd_fork.supervisor.handed_denials import HandedDenials
from smtpd_fork.supervisor.new_process import NotReadyError, wait_until_ready
from smtpd_fork.supervisor.processes import Processes

if TYPE_CHECKING:
    from smtpd_fork.cli.services import Services
    from smtpd_fork.cli.startup_resources import StartupResources
    from smtpd_fork.daemon import Successor
    from smtpd_fork.server import Server

__all__ = ["Upgrade", "old_process_goes_on"]

log = logging.getLogger("smtpd_fork.daemon")

START_SECONDS = 60.0
"""Time for a new process to be ready. A start that takes longer needs an administrator."""

STEP_SECONDS = 75.0
"""Time for a new supervisor from one process to the next. Each process has START_SECONDS to start;
the supervisor reports the error of a process that fails before this time is over."""

UNREAD_SECONDS = 0.5
"""Time to read what the new process has sent in time, if this process was stopped, or hung."""

END_SECONDS = 5.0
"""Time for a failed new process to end; then it is killed."""


class State(Enum):
    """The progress of an upgrade; only a process in state READY begins one."""

    NOT_SERVING = "the process starts or stops"
    READY = "an upgrade is possible"
    STARTING = "the new process starts"
    HANDED_OVER = "the new process has all resources"


class Upgrade:
    """Starts a new process and hands the resources of this one over to it, at most once.

    :param done: called once the new process has the resources
    :param turn: a lock that a reload holds as well, so that listeners do not change meanwhile
    :param detached: whether the current directory is not the one of the start
    """

    def __init__(
        self,
        server: Server | Processes,
        resources: StartupResources,
        services: Services,
        *,
        done: Callable[[], None],
        detached: bool,
        turn: asyncio.Lock,
    ) -> None:
        self._server = server
        self._upgrades = server.upgrades if isinstance(server, Processes) else None
        self._limit: asyncio.Timeout | None = None
        self._resources = resources
        self._services = services
        self._done = done
        self._detached = detached
        self._turn = turn
        self._task: asyncio.Task[None] | None = None
        self._state = State.NOT_SERVING
        self._pid = 0
        self._process: subprocess.Popen[bytes] | None = None  # kept as it outlives this object

    def serving(self) -> None:
        """Permit upgrades, as this process serves now."""
        self._state = State.READY

    def request(self) -> None:
        """Begin an upgrade; log a warning if it is not possible now, or in progress."""
        if self._resources.under_init:
            log.warning("SIGUSR2: a container ends with its first process; start another one")
        elif self._resources.supervised is not None:
            log.warning("SIGUSR2: the supervisor upgrades, process %d", os.getppid())
        elif self._state is State.HANDED_OVER:
            log.warning("SIGUSR2: a new process has replaced this one already")
        elif self._state is State.NOT_SERVING:
            log.warning("SIGUSR2: no upgrade while this process starts or stops")
        elif self._state is State.STARTING:
            log.warning("SIGUSR2: an upgrade is in progress already")
        else:
            self._state = State.STARTING
            self._task = asyncio.ensure_future(self._hand_over())

    async def end(self) -> None:
        """End an upgrade in progress, as this process stops: the new process ends as well.

        If the new process has the resources already, only this process ends.
        """
        self._done = lambda: None
        if self._state is not State.HANDED_OVER:
            self._state = State.NOT_SERVING
            if self._task is not None:
                self._task.cancel()
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _hand_over(self) -> None:
        log.info("SIGUSR2: upgrade, starting a new process")
        try:
            line, child_end = socket.socketpair()
            line.setblocking(False)
            with line, child_end, HandedDenials(self._server.gate.denials) as denials:
                async with self._turn:
                    await self._hand_over_by(line, child_end, denials)
        except Exception as error:  # noqa: BLE001 - this process must continue after any error
            reason = str(error) or repr(error)
            log.error("upgrade failed, this process continues: %s", reason)  # noqa: TRY400 - one line
            if self._state is State.STARTING:
                self._state = State.READY
        finally:
            self._task = None

    async def _hand_over_by(
        self, line: socket.socket, child_end: socket.socket, denials: HandedDenials
    ) -> None:
        """Hand over to a new process, or restore the previous state if that fails."""
        process: subprocess.Popen[bytes] | None = None
        try:
            with ExitStack() as stack:
                supervisor: socket.socket | None = None
                if self._upgrades is not None:
                    supervisor = await self._upgrades.connect_new(self._extend_limit)
                    stack.enter_context(supervisor)
                process = self._process = await self._start(child_end, denials, supervisor)
            await self._until_ready(line, process)
            await self._transfer(line, denials)
        except BaseException:
            await self._recover(line, process)
            raise

    async def _start(
        self, child_end: socket.socket, denials: HandedDenials, supervisor: socket.socket | None
    ) -> subprocess.Popen[bytes]:
        """Start the new process; if this coroutine is cancelled, the process is killed."""
        spawning = asyncio.ensure_future(
            asyncio.to_thread(self._spawn, child_end, denials.descriptor, supervisor)
        )
        try:
            return await asyncio.shield(spawning)
        except asyncio.CancelledError:
            await asyncio.wait([spawning])
            if spawning.exception() is None:
                spawning.result().kill()  # it has no clients or files yet
            raise
        finally:
            child_end.close()

    def _spawn(
        self, child_end: socket.socket, denials: int, supervisor: socket.socket | None
    ) -> subprocess.Popen[bytes]:
        """Start the new process.

        :raises OSError: fork(2) fails, or the interpreter no longer exists
        """
        invocation = self._resources.invocation
        stderr = os.dup(2)
        try:
            handover = self._resources.handover(
                self._server, self._services.sockets(), stderr, denials, supervisor
            )
            return subprocess.Popen(  # noqa: S603 - the command line of this process
                invocation.command,
                cwd=invocation.directory if self._detached else None,
                env={**invocation.environment, HANDOVER_VARIABLE: handover.text()},
                stderr=child_end.fileno(),
                pass_fds=tuple(handover.descriptors),
            )
        finally:
            os.close(stderr)

    # -- the connection to the new process -----------------------------------------------------

    async def _until_ready(self, line: socket.socket, process: subprocess.Popen[bytes]) -> None:
        """Wait until the new process is ready; a new supervisor has more time after each step.

        :raises NotReadyError: it reports an error, or has ended
        """

        def began(pid: int) -> None:
            self._pid = pid

        for limit in (START_SECONDS, UNREAD_SECONDS):
            with suppress(TimeoutError):
                try:
                    async with asyncio.timeout(limit) as self._limit:
                        return await wait_until_ready(
                            line, lambda: asyncio.to_thread(self._wait, process), began
                        )
                finally:
                    self._limit = None
        if self._new_processes_serve:  # it hangs; its processes end with their last sessions
            os.kill(self._pid or process.pid, signal.SIGKILL)
        seconds = STEP_SECONDS if self._new_processes_serve else START_SECONDS
        raise NotReadyError(f"it was not ready in {seconds:g} s")

    def _extend_limit(self) -> None:
        if self._limit is not None:
            self._limit.reschedule(asyncio.get_running_loop().time() + STEP_SECONDS)

    @staticmethod
    def _wait(process: subprocess.Popen[bytes]) -> int | str:
        try:
            return process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            return "unknown"

    async def _transfer(self, line: socket.socket, denials: HandedDenials) -> None:
        """Transfer all resources to the new process. From here on, no step can fail."""
        self._state = State.HANDED_OVER
        self._server.withdraw()
        self._resources.leave_files()
        await self._services.handed_over(self._pid)  # from here on, no denial is added here
        try:
            denials.write()
        except OSError as error:
            log.error("cannot pass the networks denied at run time to the new process: %s", error)  # noqa: TRY400
        with suppress(OSError):  # the new process has just died; its supervisor will notice
            line.send(YOURS)
        log.info("upgrade complete: process %d has inherited the sockets", self._pid)
        self._done()

    async def _recover(self, line: socket.socket, process: subprocess.Popen[bytes] | None) -> None:
        """Restore the state before the upgrade.

        A new supervisor that already has clients ends with its last session.
        """
        served = self._new_processes_serve
        try:
            if served and self._upgrades is not None and self._state is State.STARTING:
                await self._upgrades.resume()
        finally:
            with suppress(OSError):
                line.send(NO)
            end = None if self._upgrades is None else self._upgrades.cancel()
        if process is not None and not served:
            await asyncio.shield(asyncio.to_thread(self._kill, process))
        elif process is not None and end is not None:
            end.add_done_callback(lambda _, new=process: self._reap(new))  # type: ignore[misc]
        elif process is not None:  # it has ended already
            self._reap(process)
        if self._resources.pid_file is not None:
            with suppress(SmtpdForkError):  # the new process may have written its pid already
                self._resources.pid_file.write(os.getpid())

    def _reap(self, process: subprocess.Popen[bytes]) -> None:
        """Wait for a new process that has ended, so that no zombie remains."""
        self._pid = 0
        asyncio.get_running_loop().run_in_executor(None, self._wait, process)

    @property
    def _new_processes_serve(self) -> bool:
        """Whether processes of a new supervisor serve already."""
        return self._upgrades is not None and self._upgrades.new_serves

    def _kill(self, process: subprocess.Popen[bytes]) -> None:
        pid, self._pid = self._pid or process.pid, 0
        for number in (signal.SIGTERM, signal.SIGKILL):
            if pid != process.pid:  # not a child process of this one, but a child of `process`
                with suppress(OSError):
                    os.kill(pid, number)
            if pid == process.pid or number == signal.SIGKILL:
                process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(END_SECONDS)
                break


async def old_process_goes_on(successor: Successor) -> bool:
    """Wait for the old process's message; return whether the old process continues to serve."""
    successor.line.setblocking(False)
    try:
        answer = await asyncio.get_running_loop().sock_recv(successor.line, len(YOURS))
    except OSError:
        answer = b""  # the old process was killed: this one must serve
    successor.line.close()
    return answer.startswith(NO[:1])
