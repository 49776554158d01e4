"""ServingProcess: one process of ``--processes``, as its supervisor sees it.

It is started like the new process of an upgrade: it inherits the listening sockets, reports that it
is ready, and accepts clients after an order. The supervisor remains the owner of the sockets.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from smtpd_fork.daemon.handover import (
    HANDOVER_VARIABLE,
    YOURS,
    Handover,
    HandoverListener,
    Supervised,
)
from smtpd_fork.errors import ExitStatus, OperatingSystemError, SmtpdForkError
from smtpd_fork.supervisor.channel import Channel, ChannelClosedError
from smtpd_fork.supervisor.handed_denials import HandedDenials
from smtpd_fork.supervisor.new_process import NotReadyError, wait_until_ready

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from smtpd_fork.daemon import Invocation
    from smtpd_fork.gate import Denials
    from smtpd_fork.listeners import Listener

__all__ = ["ProcessError", "ServingProcess", "Start", "describe_exit"]

log = logging.getLogger("smtpd_fork.daemon")

START_SECONDS = 60.0
"""How long a process may take until it is ready; the same as for an upgrade."""

END_SECONDS = 5.0
"""How long a process that failed to start may take to end, before it is killed."""

PING_SECONDS = 5.0
"""Interval of the health checks of a process."""

STUCK_SECONDS = 60.0
"""Timeout of a health check. After it the process is killed: its event loop hangs."""

_SUPERVISOR_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC")
"""Environment variables that the processes do not inherit."""


class ProcessError(SmtpdForkError):
    """A process cannot start, or cannot carry out a request; with its reason and exit status."""

    def __init__(self, reason: str, status: int = ExitStatus.SOFTWARE) -> None:
        super().__init__(reason)
        with suppress(ValueError):
            self.exit_status = ExitStatus(status)


@dataclass(frozen=True, slots=True)
class Start:
    """The parameters that each process is started with.

    :ivar directory: the current directory of the process; None: the supervisor's
    :ivar of: how many processes there are
    :ivar answer: carries out the requests of a process
    """

    invocation: Invocation
    listeners: Sequence[Listener]
    denials: Denials
    directory: str | None
    of: int
    answer: Callable[[ServingProcess, str, Any], Any]


class ServingProcess:
    """A process that is ready to serve; created by :meth:`start`.

    :ivar number: from 1
    :ivar began: time of its start, by the loop's clock
    :ivar sessions: its number of sessions at the last health check
    :ivar leaving: whether it was ordered to end
    :ivar nodes: its name as a node, which shares limits; empty until its first message
    """

    def __init__(
        self, number: int, process: asyncio.subprocess.Process, channel: Channel, began: float
    ) -> None:
        self.number = number
        self.pid = process.pid
        self.began = began
        self.sessions = 0
        self.leaving = False
        self.nodes: set[str] = set()
        self._process = process
        self._channel = channel
        self._before_serving: tuple[socket.socket, HandedDenials] | None = None
        self._watching: asyncio.Task[None] | None = None

    def __str__(self) -> str:
        return f"process {self.number} (pid {self.pid})"

    # -- start ---------------------------------------------------------------------------------

    @classmethod
    async def start(cls, number: int, start: Start) -> ServingProcess:
        """Start process *number*; return it when it is ready.

        :raises ProcessError: the process has failed to start
        :raises OperatingSystemError: the system has no resources for a process
        """
        began = asyncio.get_running_loop().time()
        with ExitStack() as stack:
            try:
                handed = stack.enter_context(HandedDenials(start.denials))
                handover, its_handover = map(stack.enter_context, socket.socketpair())
                ours, its_channel = map(stack.enter_context, socket.socketpair())
                process = await _spawn(number, start, its_handover, its_channel, handed.descriptor)
            except OSError as error:
                raise OperatingSystemError(f"cannot start a process: {error.strerror}") from None
            its_handover.close()
            its_channel.close()
            found = cls(number, process, Channel(ours, ["elsewhere"]), began)
            found._channel.answer = partial(start.answer, found)
            stack.callback(found._channel.close)
            try:
                await found._channel.start()
                await _until_ready(handover, process)
            except BaseException:
                with suppress(ProcessLookupError):
                    process.kill()  # it has no sessions
                await asyncio.shield(process.wait())
                raise
            stack.pop_all()
        found._before_serving = handover, handed
        return found

    def serve(self) -> None:
        """Make the process accept clients."""
        assert self._before_serving is not None
        (handover, handed), self._before_serving = self._before_serving, None
        # An error means that the process has just ended; ended() returns then.
        with handover, handed, suppress(OSError):
            handed.write()  # with the networks that were denied since its start
            handover.send(YOURS)
        self._watching = asyncio.ensure_future(self._watch())

    # -- requests and end ---------------------------------------------------------------------

    async def ask(self, kind: str, body: Any = None, *, seconds: float | None = None) -> Any:
        """Send a request; see :meth:`Channel.ask`."""
        return await self._channel.ask(kind, body, seconds=seconds)

    def notify(self, kind: str, body: Any = None) -> None:
        """Send a notification; see :meth:`Channel.notify`."""
        self._channel.notify(kind, body)

    def end(self, order: str, body: Any = None) -> None:
        """Order the process to end: ``stop``, ``drain``, ``leave``, or ``abort`` (at once)."""
        self.leaving = True
        self.notify(order, body)
        if self._before_serving is not None:  # it has no sessions
            self.kill()

    def kill(self) -> None:
        """Send SIGKILL to the process."""
        with suppress(ProcessLookupError):
            self._process.kill()

    async def ended(self) -> int:
        """Wait for the end of the process.

        :returns: its exit status, or the negative number of the signal that has ended it
        """
        status = await self._process.wait()
        if self._watching is not None:
            self._watching.cancel()
        self._channel.close()
        if self._before_serving is not None:
            (handover, handed), self._before_serving = self._before_serving, None
            handover.close()
            handed.__exit__()
        return status

    async def _watch(self) -> None:
        """Kill the process if its event loop hangs."""
        with suppress(ChannelClosedError):
            while True:
                if not await self._answers():
                    log.error("%s has not answered for %g s: killed", self, STUCK_SECONDS)
                    self.kill()
                    return
                await asyncio.sleep(PING_SECONDS)

    async def _answers(self) -> bool:
        """Return whether the process answers a health check in time.

        There are two checks, as the supervisor itself may have been suspended or blocked: then the
        first one may time out although its answer has arrived.
        """
        for _ in range(2):
            with suppress(TimeoutError):
                self.sessions = await self.ask("ping", seconds=STUCK_SECONDS / 2)
                return True
        return False


def describe_exit(status: int) -> str:
    """Return a text for an exit status: ``with status 1``, ``by SIGKILL``."""
    if status >= 0:
        return f"with status {status}"
    try:
        return f"by {signal.Signals(-status).name}"
    except ValueError:
        return f"by signal {-status}"


async def _spawn(
    number: int, start: Start, ready: socket.socket, channel: socket.socket, denials: int
) -> asyncio.subprocess.Process:
    stderr = os.dup(2)
    listeners = [
        # Marked as inherited from a service manager: the process neither binds nor removes them.
        HandoverListener(each.sock.fileno(), each.address.scheme, str(each.address), inherited=True)
        for each in start.listeners
    ]
    supervised = Supervised(number, start.of, channel.fileno())
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
        if name not in _SUPERVISOR_VARIABLES
    }
    try:
        return await asyncio.create_subprocess_exec(
            *start.invocation.command,
            cwd=start.directory,
            env={**environment, HANDOVER_VARIABLE: handover.text()},
            stderr=ready.fileno(),
            pass_fds=handover.descriptors,
        )
    finally:
        os.close(stderr)


async def _until_ready(handover: socket.socket, process: asyncio.subprocess.Process) -> None:
    handover.setblocking(False)
    try:
        async with asyncio.timeout(START_SECONDS):
            await wait_until_ready(handover, process.wait)
    except NotReadyError as error:
        raise ProcessError(str(error), await _exit_status(process)) from None
    except TimeoutError:
        raise ProcessError(f"it was not ready in {START_SECONDS:g} s") from None


async def _exit_status(process: asyncio.subprocess.Process) -> int:
    """Wait for the end of a process that failed to start, or kill it; return its exit status."""
    try:
        async with asyncio.timeout(END_SECONDS):
            return await process.wait()
    except TimeoutError:
        process.kill()
        return await process.wait()
