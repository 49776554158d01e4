"""Upgrade: SIGUSR2 starts a new process of the same command line, which takes this one's place.

The new process inherits the listening sockets, so they stay open, with one backlog: a client that
connects after one process stops accepting and before the other begins waits there. Until the new
process says that it is ready, nothing changes here; if it never does, nothing has happened, as it
accepts no client before the old one lets it. :mod:`smtpd_fork.daemon.handover` has the messages.
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
"""How long a new process may take; a start that takes longer has to be looked at."""

STEP_SECONDS = 75.0
"""How long a new supervisor may take from one process to the next: that has the same time to start,
and says what is wrong before this is over."""

END_SECONDS = 5.0
"""How long a new process that failed may take to end, before it is killed."""


class State(Enum):
    """How far an upgrade has come; only a process that is READY begins one."""

    NOT_SERVING = "not yet, or not any more"
    READY = "nothing has begun"
    STARTING = "there is a new process, or will be"
    HANDED_OVER = "the new process has everything"


class Upgrade:
    """Starts the new process and hands everything over to it, at most once.

    :param done: called once the new process has everything
    :param turn: held meanwhile: listeners that a reload changes are seen before it, or after it
    :param detached: the current directory is not the one of the start
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
        self._process: subprocess.Popen[bytes] | None = None  # nobody waits for it: it outlives us

    def serving(self) -> None:
        """Take note that sockets can be inherited."""
        self._state = State.READY

    def ask(self) -> None:
        """Have it done; while it is done, and after it, there is nothing to do."""
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
        """Have a new process that is still starting end, as this one does.

        One that has everything already is let be: then it is this one alone that ends.
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
            line, its = socket.socketpair()
            line.setblocking(False)
            with line, its, HandedDenials(self._server.gate.denials) as denials:
                async with self._turn:
                    await self._hand_over_by(line, its, denials)
        except Exception as error:  # noqa: BLE001 - whatever it is, this process goes on
            reason = str(error) or repr(error)
            log.error("upgrade failed, this process continues: %s", reason)  # noqa: TRY400 - one line
            if self._state is State.STARTING:
                self._state = State.READY
        finally:
            self._task = None

    async def _hand_over_by(
        self, line: socket.socket, its: socket.socket, denials: HandedDenials
    ) -> None:
        """Hand over, or see that all is as it was."""
        process: subprocess.Popen[bytes] | None = None
        try:
            with ExitStack() as stack:
                supervisor: socket.socket | None = None
                if self._upgrades is not None:
                    supervisor = await self._upgrades.connect_new(self._stepped)
                    stack.enter_context(supervisor)
                process = self._process = await self._started(its, denials, supervisor)
            await self._until_ready(line, process)
            await self._give(line, denials)
        except BaseException:
            await self._recover(line, process)
            raise

    async def _started(
        self, its: socket.socket, denials: HandedDenials, supervisor: socket.socket | None
    ) -> subprocess.Popen[bytes]:
        """Return the new process; if this is cancelled, there is none."""
        spawning = asyncio.ensure_future(
            asyncio.to_thread(self._spawn, its, denials.descriptor, supervisor)
        )
        try:
            return await asyncio.shield(spawning)
        except asyncio.CancelledError:
            await asyncio.wait([spawning])
            if spawning.exception() is None:
                spawning.result().kill()  # it has not got as far as to have anything to lose
            raise
        finally:
            its.close()

    def _spawn(
        self, its: socket.socket, denials: int, supervisor: socket.socket | None
    ) -> subprocess.Popen[bytes]:
        """Start the new process.

        :raises OSError: there can be no more processes, or the interpreter is not there any more
        """
        invocation = self._resources.invocation
        stderr = os.dup(2)
        try:
            handover = self._resources.handover(
                self._server, self._services.sockets(), stderr, denials, supervisor
            )
            return subprocess.Popen(  # noqa: S603 - what this process was started with
                invocation.command,
                cwd=invocation.directory if self._detached else None,
                env={**invocation.environment, HANDOVER_VARIABLE: handover.text()},
                stderr=its.fileno(),
                pass_fds=tuple(handover.descriptors),
            )
        finally:
            os.close(stderr)

    # -- the line ------------------------------------------------------------------------------

    async def _until_ready(self, line: socket.socket, process: subprocess.Popen[bytes]) -> None:
        """Wait until the new process is ready; a supervisor has more time after each step.

        :raises NotReadyError: it says that it cannot, or has ended
        """

        def began(pid: int) -> None:
            self._pid = pid

        try:
            async with asyncio.timeout(START_SECONDS) as self._limit:
                await wait_until_ready(line, lambda: asyncio.to_thread(self._ended, process), began)
        except TimeoutError:
            if self._replaces:  # it hangs; its processes end with their last sessions
                os.kill(self._pid or process.pid, signal.SIGKILL)
            seconds = STEP_SECONDS if self._replaces else START_SECONDS
            raise NotReadyError(f"it was not ready in {seconds:g} s") from None
        finally:
            self._limit = None

    def _stepped(self) -> None:
        if self._limit is not None:
            self._limit.reschedule(asyncio.get_running_loop().time() + STEP_SECONDS)

    @staticmethod
    def _ended(process: subprocess.Popen[bytes]) -> int | str:
        try:
            return process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            return "unknown"

    async def _give(self, line: socket.socket, denials: HandedDenials) -> None:
        """Let go of everything, and say so; from here on nothing can fail."""
        self._state = State.HANDED_OVER
        self._server.withdraw()
        self._resources.let_go()
        await self._services.handed_over(self._pid)  # from here on nobody is denied here
        try:
            denials.write()
        except OSError as error:
            log.error("cannot pass the networks denied at run time to the new process: %s", error)  # noqa: TRY400
        with suppress(OSError):  # it died this moment; its supervisor will find out
            line.send(YOURS)
        log.info("upgrade complete: process %d has inherited the sockets", self._pid)
        self._done()

    async def _recover(self, line: socket.socket, process: subprocess.Popen[bytes] | None) -> None:
        """See that all is as before; a new process that has clients ends with its last session."""
        served = self._replaces
        try:
            if served and self._upgrades is not None and self._state is State.STARTING:
                await self._upgrades.resume()
        finally:
            with suppress(OSError):
                line.send(NO)
            end = None if self._upgrades is None else self._upgrades.cancel()
        if process is not None and not served:
            await asyncio.shield(asyncio.to_thread(self._put_down, process))
        elif process is not None and end is not None:
            end.add_done_callback(lambda _, new=process: self._reap(new))  # type: ignore[misc]
        if self._resources.pid_file is not None:
            with suppress(SmtpdForkError):  # it may have written its own pid already
                self._resources.pid_file.write(os.getpid())

    def _reap(self, process: subprocess.Popen[bytes]) -> None:
        """Wait for a new process that has ended, so that it does not stay a zombie."""
        self._pid = 0
        asyncio.get_running_loop().run_in_executor(None, self._ended, process)

    @property
    def _replaces(self) -> bool:
        """Whether processes of a new supervisor serve."""
        return self._upgrades is not None and self._upgrades.new_serves

    def _put_down(self, process: subprocess.Popen[bytes]) -> None:
        pid, self._pid = self._pid or process.pid, 0
        for number in (signal.SIGTERM, signal.SIGKILL):
            if pid != process.pid:  # no child of this process; its parent, which is, ends after it
                with suppress(OSError):
                    os.kill(pid, number)
            if pid == process.pid or number == signal.SIGKILL:
                process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(END_SECONDS)
                break


async def old_process_goes_on(successor: Successor) -> bool:
    """Wait for the old process's word; return whether it goes on, so that this one must not."""
    successor.line.setblocking(False)
    try:
        answer = await asyncio.get_running_loop().sock_recv(successor.line, len(YOURS))
    except OSError:
        answer = b""  # it was killed: this process must serve
    successor.line.close()
    return answer.startswith(NO[:1])
