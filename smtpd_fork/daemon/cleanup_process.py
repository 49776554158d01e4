"""CleanupProcess: a helper process that keeps the privilege to clean up after the daemon.

After dropping privileges the daemon may no longer remove its pid-file from /run, or the path of a
unix socket. The cleanup process is forked before that. It waits until the daemon has ended, even by
SIGKILL, removes what still belongs to the daemon, and ends. It takes no input: all that it does is
unlink(2) of paths that it knows from the start.
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
"""Removes a path, if it still leads to what the daemon made; may raise OSError."""

DISMISS_SECONDS = 5.0
"""Time for a dismissed cleanup process to remove a few files."""

NAME = "smtpd-fork-rm"
"""Name of the process, as ``ps -e`` and top(1) show it; at most 15 characters (proc(5))."""

_MAX_DESCRIPTOR = 1 << 20


class CleanupProcess:
    """The daemon's end of the line. Make one with :meth:`start`.

    :ivar foreign: another process owns it: the old one of an upgrade, or the new one
    """

    def __init__(self, line: socket.socket, *, foreign: bool = False) -> None:
        self._line = line
        self.foreign = foreign

    @property
    def descriptor(self) -> int:
        """The line; the cleanup process waits until the last process has closed it."""
        return self._line.fileno()

    @classmethod
    def start(cls, removals: Sequence[Remove], keep: int | None = None) -> Self:
        """Fork a cleanup process that will call *removals*.

        :param keep: a descriptor that stays open: the pid-file's, so that its lock lasts until the
            file is removed
        :raises OperatingSystemError: there can be no more processes or descriptors
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
                _work(its, removals, keep)
            finally:
                os._exit(0)
        its.close()
        return cls(ours)

    def dismiss(self) -> None:
        """Let the cleanup process clean up now, and wait for it; if this process owns it."""
        with suppress(OSError), self._line:
            if self.foreign:
                return
            self._line.shutdown(socket.SHUT_WR)
            self._line.settimeout(DISMISS_SECONDS)
            self._line.recv(1)


def _work(line: socket.socket, removals: Sequence[Remove], keep: int | None) -> None:
    """Wait until every process has closed the line, and clean up."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)  # it ends after the daemon
    with suppress(OSError):
        os.setsid()
    with suppress(OSError):  # no /proc
        Path("/proc/self/comm").write_text(NAME)
    os.chdir("/")
    _close_others(line.fileno(), keep)
    with suppress(OSError):
        while line.recv(1):
            pass
    for remove in removals:
        with suppress(OSError):
            remove()


def _close_others(*kept: int | None) -> None:
    """Close all descriptors but *kept*: a listening socket held here would keep its port in use."""
    null_standard_descriptors()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    end = _MAX_DESCRIPTOR if hard == resource.RLIM_INFINITY else min(hard, _MAX_DESCRIPTOR)
    low = 3
    for descriptor in sorted(number for number in kept if number is not None):
        os.closerange(low, descriptor)
        low = descriptor + 1
    os.closerange(low, end)
