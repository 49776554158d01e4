"""CleanupProcess: a helper process that keeps the privilege to clean up after the daemon.

After dropping privileges the daemon may no longer remove its pid-file from /run, or the path of a
unix socket. The cleanup process is forked before that. It waits until the daemon has ended, even by
SIGKILL, removes the files that still belong to the daemon, and ends. It accepts no input: it only
calls unlink(2) for paths that are fixed when it is forked.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self, TypeAlias

from smtpd_fork.daemon.descriptors import null_standard_descriptors
from smtpd_fork.errors import OperatingSystemError

__all__ = ["CleanupProcess"]

Remove: TypeAlias = Callable[[], None]
"""Removes a path if the daemon's file is still there; may raise OSError."""

FINISH_SECONDS = 5.0
"""Time limit for the cleanup process to remove the files after :meth:`CleanupProcess.finish`."""

NAME = "smtpd-fork-rm"
"""Name of the process, as ``ps -e`` and top(1) show it; at most 15 characters (proc(5))."""

_MAX_DESCRIPTOR = 1 << 20


class CleanupProcess:
    """The daemon's connection to the cleanup process. Use :meth:`start` to create one.

    :ivar foreign: whether another process owns it: the old or the new process of an upgrade
    """

    def __init__(self, line: socket.socket, *, foreign: bool = False) -> None:
        self._line = line
        self.foreign = foreign

    @property
    def descriptor(self) -> int:
        """The daemon's socket; the cleanup process waits until no process has it open any more."""
        return self._line.fileno()

    @classmethod
    def start(cls, removals: Sequence[Remove], keep: int | None = None) -> Self:
        """Fork a cleanup process that will call *removals*.

        :param keep: a descriptor that stays open: that of the pid-file, so that the file stays
            locked until it is removed
        :raises OperatingSystemError: no more processes or descriptors are available
        """
        try:
            ours, its = socket.socketpair()
            pid = os.fork()
        except OSError as error:
            raise OperatingSystemError(
                f"cannot start the cleanup process: {error.strerror}"
            ) from None
        if pid == 0:
            try:
                _run(its, removals, keep)
            finally:
                os._exit(0)
        its.close()
        return cls(ours)

    def finish(self) -> None:
        """Close the connection; if this process owns the cleanup process, wait until it is done."""
        with suppress(OSError), self._line:
            if self.foreign:
                return
            self._line.shutdown(socket.SHUT_WR)
            self._line.settimeout(FINISH_SECONDS)
            self._line.recv(1)


def _run(line: socket.socket, removals: Sequence[Remove], keep: int | None) -> None:
    """Wait until all processes have closed the other end of *line*, and remove the files."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)  # a signal to the group must not end it too early
    with suppress(OSError):
        os.setsid()
    with suppress(OSError):  # no /proc
        Path("/proc/self/comm").write_text(NAME)
    os.chdir("/")
    _close_all_except(line.fileno(), keep)
    with suppress(OSError):
        while line.recv(1):
            pass
    for remove in removals:
        with suppress(OSError):
            remove()


def _close_all_except(*kept: int | None) -> None:
    """Close all descriptors but *kept*: an open listening socket would keep its port in use."""
    null_standard_descriptors()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    end = _MAX_DESCRIPTOR if hard == resource.RLIM_INFINITY else min(hard, _MAX_DESCRIPTOR)
    low = 3
    for descriptor in sorted(number for number in kept if number is not None):
        os.closerange(low, descriptor)
        low = descriptor + 1
    os.closerange(low, end)
