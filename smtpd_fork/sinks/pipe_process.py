"""PipeProcess: run a command in a thread, write the message to it, and kill it with its children.

The process runs in a session of its own, so that its children are killed with it, except those that
begin another session. It inherits no descriptors but its standard input and output, gets only the
given environment, and has the default actions of signals.
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
"""Bytes of the output that are kept for the log; the rest is read and discarded, so that the
program does not block."""

READ_BYTES = 1 << 16

LAST_READS = 16
"""Maximum reads of the output after the program has ended."""

POLL_SECONDS = 0.05
"""Seconds between two checks of the process, on systems without pidfd_open(2)."""


class Ended(NamedTuple):
    """The result of a run.

    :ivar status: the exit status; negative: the signal that has ended it; None: unknown, because
        other code in this process has waited for it, or SIGCHLD is ignored
    :ivar line: the first line of the output
    :ivar size: bytes of the message that were written to its pipe
    """

    status: int | None
    line: str
    size: int


class PipeProcess:
    """A run of a command.

    :param arguments: the program and its arguments
    :param environment: the whole environment
    :param pieces: the message in pieces
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
        """Run the command until it has ended. Blocks.

        :raises OSError: it cannot be started, or its limits cannot be set
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
        """Send a signal to the process and its children; return False if it has ended before."""
        with self._lock:
            if self._pid == 0:
                return False
            self._killed = True
            self._signal(number)
            return True

    def _signal(self, number: signal.Signals) -> None:
        if self._pid:
            with suppress(ProcessLookupError, PermissionError):  # EPERM: a set-uid program
                os.killpg(self._pid, number)

    def _start(self) -> subprocess.Popen[bytes]:
        # A child inherits the signal mask of the thread that starts it.
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
        """Write a part of the message; return False if it is complete, or the pipe is closed."""
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
        """Read a part of the output; return whether there may be more."""
        try:
            data = os.read(descriptor, READ_BYTES)
        except BlockingIOError:
            return not last
        except OSError:
            return False
        self._output += data[: OUTPUT_BYTES - len(self._output)]
        return bool(data)

    def _wait(self, process: subprocess.Popen[bytes]) -> int | None:
        """Wait for the process, which has ended or was killed; return its status."""
        try:
            found = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:
            found = None
        with self._lock:
            if self._killed and found is not None:
                # The process ID cannot be reused before wait(), so killpg() hits the right group.
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
            self._pid = 0
            process.wait()
        if found is None:
            return None
        return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status


def _pidfd(pid: int) -> int | None:
    """Return a descriptor that is readable when the process has ended; None if not supported."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None  # not Linux, an old kernel, or a seccomp filter


def _has_ended(pid: int) -> bool:
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
    except ChildProcessError:
        return True
