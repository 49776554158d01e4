"""PipeProcess: one run of a command, in a thread: fed, watched, and killed with all it started.

The process has a session of its own, so that it is killed together with its children; a child
that begins a session itself escapes. It has no descriptor of ours but its standard input and
output, no environment but what it is given, and the signals' default actions.
"""

from __future__ import annotations

import os
import resource
import selectors
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import NamedTuple

__all__ = ["Ended", "PipeProcess"]

OUTPUT_BYTES = 1024
"""Of the output, for the log; all else is read and forgotten, so that a program can go on."""

READ_BYTES = 1 << 16

LAST_READS = 16
"""At most so many, of what a program that has ended left in its output."""

POLL_SECONDS = 0.05
"""Time between two looks at the process, where pidfd_open(2) does not exist."""


class Ended(NamedTuple):
    """How a run has ended.

    :ivar status: the exit status; negative: the signal that ended it; None: unknown, as something
        else in this process has waited for it, or SIGCHLD is ignored
    :ivar line: the first line of its output
    :ivar size: bytes of the message that it has read, or that are in its pipe
    """

    status: int | None
    line: str
    size: int


class PipeProcess:
    """A run of a command.

    :param arguments: the first is the program
    :param environment: all of it
    :param pieces: the message
    :param limits: resource limits by their number (:mod:`resource`)
    """

    def __init__(
        self,
        arguments: Sequence[bytes],
        environment: Mapping[str, bytes],
        pieces: Iterator[bytes],
        limits: Mapping[int, int],
    ) -> None:
        self._arguments = arguments
        self._environment = environment
        self._pieces = pieces
        self._limits = limits
        self._left = memoryview(b"")
        self._output = bytearray()
        self._size = 0
        self._lock = threading.Lock()
        self._pid: int | None = None
        self._killed = False

    def run(self) -> Ended:
        """Run it, in a thread, until it has ended.

        :raises OSError: it cannot be started, or cannot be limited
        """
        before = self._killed
        if before:
            return Ended(-signal.SIGKILL, "", 0)
        with ExitStack() as stack:
            process = self._start()
            try:
                stack.enter_context(process)  # closes the pipes
                for number, limit in self._limits.items():
                    resource.prlimit(process.pid, number, (limit, limit))
                with self._lock:
                    self._pid = process.pid
                    if self._killed:
                        self._signal(signal.SIGKILL)
                self._feed(process, stack)
            except BaseException:
                self._killed = True
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                raise
            finally:
                status = self._wait(process)
        line = bytes(self._output).lstrip().partition(b"\n")[0].strip()
        return Ended(status, line.decode("utf-8", "replace"), self._size)

    def kill(self, number: signal.Signals) -> bool:
        """Send a signal to it and to what it has started; return False if it has ended before."""
        with self._lock:
            if self._pid == 0:
                return False
            self._killed = True
            self._signal(number)
            return True

    def _signal(self, number: signal.Signals) -> None:
        if self._pid:
            with suppress(ProcessLookupError, PermissionError):  # the latter: a set-uid program
                os.killpg(self._pid, number)

    def _start(self) -> subprocess.Popen[bytes]:
        # The mask is this thread's, and a child has that of the thread that starts it.
        before = signal.pthread_sigmask(signal.SIG_SETMASK, ())
        try:
            return subprocess.Popen(  # noqa: S603 - no shell, and the program is the administrator's
                self._arguments,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd="/",
                env=self._environment,
                start_new_session=True,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _feed(self, process: subprocess.Popen[bytes], stack: ExitStack) -> None:
        """Write the message and read the output until the process has ended."""
        assert process.stdin is not None
        assert process.stdout is not None
        poll = stack.enter_context(selectors.PollSelector())
        ended = _pidfd(process.pid)
        if ended is not None:
            stack.callback(os.close, ended)
            poll.register(ended, selectors.EVENT_READ)
        for pipe, event, step in (
            (process.stdin, selectors.EVENT_WRITE, self._write),
            (process.stdout, selectors.EVENT_READ, self._read),
        ):
            os.set_blocking(pipe.fileno(), False)
            poll.register(pipe, event, step)
        while not _has_ended(process.pid):
            for key, _ in poll.select(None if ended is not None else POLL_SECONDS):
                if key.data is not None and not key.data(key.fd):
                    poll.unregister(key.fileobj)
                    key.fileobj.close()  # type: ignore[union-attr]  # a pipe of the process
        for _ in range(LAST_READS):
            if process.stdout.closed or not self._read(process.stdout.fileno(), last=True):
                break

    def _write(self, descriptor: int) -> bool:
        """Write some of the message; return whether there is more, and somebody to read it."""
        try:
            while not self._left:
                piece = next(self._pieces, None)
                if piece is None:
                    return False
                self._left = memoryview(piece)
            written = os.write(descriptor, self._left[:READ_BYTES])
        except BlockingIOError:
            return True
        except BrokenPipeError:
            return False
        self._size += written
        self._left = self._left[written:]
        return True

    def _read(self, descriptor: int, *, last: bool = False) -> bool:
        """Read some of the output; return whether there may be more."""
        try:
            data = os.read(descriptor, READ_BYTES)
        except BlockingIOError:
            return not last
        except OSError:
            return False
        self._output += data[: OUTPUT_BYTES - len(self._output)]
        return bool(data)

    def _wait(self, process: subprocess.Popen[bytes]) -> int | None:
        """Wait for the process, which has ended or is killed; return its status."""
        try:
            found = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:
            found = None
        with self._lock:
            if self._killed and found is not None:
                # Until it is waited for, its number is that of its group and of nothing else.
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
            self._pid = 0
            process.wait()
        if found is None:
            return None
        return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status


def _pidfd(pid: int) -> int | None:
    """Return a descriptor that is readable once the process has ended; None if there is none."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None  # not Linux, an old one, or one with a filter


def _has_ended(pid: int) -> bool:
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
    except ChildProcessError:
        return True
