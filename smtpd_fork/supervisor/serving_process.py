"""ServingProcess: one process of ``--processes``, as its supervisor sees it.

It is started like the new process of an upgrade: it inherits the listening sockets, reports that it
is ready, and serves after an order. The sockets never become its own.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from smtpd_fork.daemon.handover import (
    HANDOVER_VARIABLE,
    TAKE,
    HandedListener,
    Handover,
    Supervised,
)
from smtpd_fork.errors import ExitStatus, OperatingSystemError, SmtpdForkError
from smtpd_fork.supervisor.handed_denials import HandedDenials
from smtpd_fork.supervisor.line import Line, LineClosedError
from smtpd_fork.supervisor.new_process import NotReadyError, until_ready

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from smtpd_fork.daemon import Invocation
    from smtpd_fork.gate import Denials
    from smtpd_fork.listeners import Listener

__all__ = ["ProcessError", "ServingProcess", "Start", "described"]

log = logging.getLogger("smtpd_fork.daemon")

START_SECONDS = 60.0
"""How long a process may take to be ready; as for an upgrade."""

END_SECONDS = 5.0
"""How long a process that failed to start may take to end, before it is killed."""

PING_SECONDS = 5.0
"""Time between two questions of whether a process still answers."""

STUCK_SECONDS = 60.0
"""How long a process may take to answer; then its event loop hangs, and it is killed."""

_OF_THE_SUPERVISOR = ("NOTIFY_SOCKET", "WATCHDOG_USEC")
"""Variables that are not for the processes."""


class ProcessError(SmtpdForkError):
    """A process cannot start, or cannot do what all have to; with its reason and exit status."""

    def __init__(self, reason: str, status: int = ExitStatus.SOFTWARE) -> None:
        super().__init__(reason)
        with suppress(ValueError):
            self.exit_status = ExitStatus(status)


@dataclass(frozen=True, slots=True)
class Start:
    """What each process is started with.

    :ivar directory: the current directory of the process; None: the supervisor's
    :ivar of: how many there are
    :ivar answer: answers what a process asks
    """

    invocation: Invocation
    listeners: Sequence[Listener]
    denials: Denials
    directory: str | None
    of: int
    answer: Callable[[ServingProcess, str, Any], Any]


class ServingProcess:
    """A process that is ready to serve; made by :meth:`start`.

    :ivar number: from 1
    :ivar began: time of its start, of the loop's clock
    :ivar sessions: how many it had when it was asked last
    :ivar leaving: whether it was ordered to end
    :ivar nodes: its name among those that share limits, once it has asked
    """

    def __init__(self, number: int, process: asyncio.subprocess.Process, line: Line) -> None:
        self.number = number
        self.pid = process.pid
        self.began = asyncio.get_running_loop().time()
        self.sessions = 0
        self.leaving = False
        self.nodes: set[str] = set()
        self._process = process
        self._line = line
        self._waits: tuple[socket.socket, HandedDenials] | None = None
        self._watching: asyncio.Task[None] | None = None

    def __str__(self) -> str:
        return f"process {self.number} (pid {self.pid})"

    # -- the start -----------------------------------------------------------------------------

    @classmethod
    async def start(cls, number: int, start: Start) -> ServingProcess:
        """Start process *number*; return it when it is ready.

        :raises ProcessError: it will not be
        :raises OperatingSystemError: there can be no more processes
        """
        try:
            handed = HandedDenials(start.denials)
            word, its_word = socket.socketpair()
            line, its_line = socket.socketpair()
        except OSError as error:
            raise OperatingSystemError(f"cannot start a process: {error.strerror}") from None
        try:
            with its_word, its_line:
                process = await _spawn(number, start, its_word, its_line, handed.descriptor)
            try:
                found = cls(number, process, Line(line))
                found._line.answer = partial(start.answer, found)
                await found._line.start()
                await _until_ready(word, process)
            except BaseException:
                with suppress(ProcessLookupError):
                    process.kill()  # it has nothing to lose
                await asyncio.shield(process.wait())
                raise
        except BaseException:
            word.close()
            line.close()
            handed.__exit__()
            raise
        found._waits = word, handed
        return found

    def serve(self) -> None:
        """Have it accept clients."""
        assert self._waits is not None
        (word, handed), self._waits = self._waits, None
        with word, handed, suppress(OSError):  # it died this moment, which shows at once
            handed.write()  # those that were denied while it started
            word.send(TAKE)
        self._watching = asyncio.ensure_future(self._watch())

    # -- its life ------------------------------------------------------------------------------

    async def ask(self, word: str, body: Any = None, *, seconds: float | None = None) -> Any:
        """Ask it; see :meth:`Line.ask`."""
        return await self._line.ask(word, body, seconds=seconds)

    def tell(self, word: str, body: Any = None) -> None:
        """Tell it; see :meth:`Line.tell`."""
        self._line.tell(word, body)

    def end(self, word: str, body: Any = None) -> None:
        """Tell it to end: ``stop``, ``drain``, ``leave``, or ``abort`` at once."""
        self.leaving = True
        self.tell(word, body)
        if self._waits is not None:  # it does not serve yet, so it has nothing to lose
            self.kill()

    def kill(self) -> None:
        """End it by SIGKILL."""
        with suppress(ProcessLookupError):
            self._process.kill()

    async def ended(self) -> int:
        """Wait for its end; return its exit status, or minus the number of a signal."""
        status = await self._process.wait()
        if self._watching is not None:
            self._watching.cancel()
        self._line.close()
        if self._waits is not None:
            (word, handed), self._waits = self._waits, None
            word.close()
            handed.__exit__()
        return status

    async def _watch(self) -> None:
        """Kill it if its event loop hangs."""
        with suppress(LineClosedError):
            while True:
                try:
                    self.sessions = await self.ask("ping", seconds=STUCK_SECONDS)
                except TimeoutError:
                    log.error("%s has not answered for %g s: killed", self, STUCK_SECONDS)  # noqa: TRY400 - one line
                    self.kill()
                    return
                await asyncio.sleep(PING_SECONDS)


def described(status: int) -> str:
    """Return an exit status in words."""
    if status >= 0:
        return f"with status {status}"
    try:
        return f"by {signal.Signals(-status).name}"
    except ValueError:
        return f"by signal {-status}"


async def _spawn(
    number: int, start: Start, word: socket.socket, line: socket.socket, denials: int
) -> asyncio.subprocess.Process:
    stderr = os.dup(2)
    listeners = [
        # As from a service manager: a process neither binds nor removes any.
        HandedListener(each.sock.fileno(), each.address.scheme, str(each.address), inherited=True)
        for each in start.listeners
    ]
    supervised = Supervised(number, start.of, line.fileno())
    handover = Handover(
        parent=os.getpid(),
        stderr=stderr,
        listeners=listeners,
        denials=denials,
        supervised=supervised,
    )
    environment = {
        name: value
        for name, value in start.invocation.environment.items()
        if name not in _OF_THE_SUPERVISOR
    }
    try:
        return await asyncio.create_subprocess_exec(
            *start.invocation.command,
            cwd=start.directory,
            env={**environment, HANDOVER_VARIABLE: handover.text()},
            stderr=word.fileno(),
            pass_fds=handover.descriptors,
        )
    except OSError as error:
        raise OperatingSystemError(f"cannot start a process: {error.strerror}") from None
    finally:
        os.close(stderr)


async def _until_ready(word: socket.socket, process: asyncio.subprocess.Process) -> None:
    word.setblocking(False)
    try:
        async with asyncio.timeout(START_SECONDS):
            await until_ready(word, process.wait)
    except NotReadyError as error:
        raise ProcessError(str(error), await _put_down(process)) from None
    except TimeoutError:
        raise ProcessError(f"it was not ready in {START_SECONDS:g} s") from None


async def _put_down(process: asyncio.subprocess.Process) -> int:
    """See that a process that failed ends; return its exit status."""
    try:
        async with asyncio.timeout(END_SECONDS):
            return await process.wait()
    except TimeoutError:
        process.kill()
        return await process.wait()
