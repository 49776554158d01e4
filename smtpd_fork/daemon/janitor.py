"""Janitor: a helper process that keeps the privilege to clean up after the daemon.

After dropping privileges the daemon may no longer remove its pid-file from /run, or the path of a
unix socket. The janitor is forked before that. It waits until the daemon has ended, even by
SIGKILL, removes what still belongs to the daemon, and ends. It takes no input: all that it does is
unlink(2) of paths that it knows from the start.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol, Self

from smtpd_fork.daemon.descriptors import null_standard_descriptors
from smtpd_fork.errors import OperatingSystemError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Janitor"]

DISMISS_SECONDS = 5.0
"""Time for a dismissed janitor to remove a few files."""

_MAX_DESCRIPTOR = 1 << 20


class Owned(Protocol):
    """A thing with a path."""

    def remove(self) -> None:
        """Remove the path, if it still leads to this.

        :raises OSError: it cannot be removed
        """


class Janitor:
    """The daemon's end of the line. Make one with :meth:`hire`."""

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._is_foreign = False

    @classmethod
    def inherit(cls, descriptor: int) -> Self:
        """Return the janitor of the old process, which still owns it."""
        janitor = cls(socket.socket(fileno=descriptor))
        janitor.let_go()
        return janitor

    def let_go(self) -> None:
        """Leave the janitor to another process that has the line as well."""
        self._is_foreign = True

    def take_over(self) -> None:
        """Own the janitor that another process has let go."""
        self._is_foreign = False

    @property
    def descriptor(self) -> int:
        """The line; the janitor waits until the last process has closed it."""
        return self._line.fileno()

    @classmethod
    def hire(cls, things: Sequence[Owned], keep: int | None = None) -> Self:
        """Fork a janitor for *things*.

        :param keep: a descriptor that stays open: the pid-file's, so that its lock lasts until the
            file is removed
        :raises OperatingSystemError: there can be no more processes or descriptors
        """
        try:
            ours, its = socket.socketpair()
            pid = os.fork()
        except OSError as error:
            raise OperatingSystemError(f"cannot start the janitor: {error.strerror}") from None
        if pid == 0:
            try:
                _work(its, things, keep)
            finally:
                os._exit(0)
        its.close()
        return cls(ours)

    def dismiss(self) -> None:
        """Let the janitor clean up now, and wait for it; if this process owns it."""
        with suppress(OSError), self._line:
            if self._is_foreign:
                return
            self._line.shutdown(socket.SHUT_WR)
            self._line.settimeout(DISMISS_SECONDS)
            self._line.recv(1)


def _work(line: socket.socket, things: Sequence[Owned], keep: int | None) -> None:
    """Wait until every process has closed the line, and clean up."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)  # it ends after the daemon
    with suppress(OSError):
        os.setsid()
    os.chdir("/")
    _close_others(line.fileno(), keep)
    with suppress(OSError):
        while line.recv(1):
            pass
    for thing in things:
        with suppress(OSError):
            thing.remove()


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
