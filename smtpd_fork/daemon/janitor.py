"""Janitor: a small process that keeps the right to clean up after one that gave it away.

Once ``--user`` has taken effect, the daemon may no longer remove its pid-file from /run, nor the
path of a unix socket. The janitor is forked before; it waits, removes what is still the daemon's
when the daemon ends (even by SIGKILL), and ends. It listens to nothing and nobody else: the one
thing it does is unlink(2) of paths that it was born with.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol, Self

from smtpd_fork.errors import OperatingSystemError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Janitor"]

DISMISS_SECONDS = 5.0
"""How long a dismissed janitor may take; it has a few files to remove."""

_MAX_DESCRIPTOR = 1 << 20


class Owned(Protocol):
    """Something on a path."""

    def remove(self) -> None:
        """Remove what is there, if it is still what was put there.

        :raises OSError: it cannot be removed
        """


class Janitor:
    """The daemon's end of it. Make one with :meth:`hire`."""

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._is_anothers = False

    @classmethod
    def inherit(cls, descriptor: int) -> Self:
        """Return the janitor of another process; it is that one's still."""
        janitor = cls(socket.socket(fileno=descriptor))
        janitor.let_go()
        return janitor

    def let_go(self) -> None:
        """Leave it to another process that has its line too."""
        self._is_anothers = True

    def take_over(self) -> None:
        """Have it from a process that let go of it."""
        self._is_anothers = False

    @property
    def descriptor(self) -> int:
        """The line to it: it waits until the last process has closed that."""
        return self._line.fileno()

    @classmethod
    def hire(cls, things: Sequence[Owned], keep: int | None = None) -> Self:
        """Fork a janitor for *things*, each removed in the end if it is still ours.

        :param keep: a descriptor that it holds on to: the pid-file's, whose lock so lasts until
            the file is gone
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
        """Have the janitor clean up now, and wait until it has; if it is still ours."""
        with suppress(OSError), self._line:
            if self._is_anothers:
                return
            self._line.shutdown(socket.SHUT_WR)
            self._line.settimeout(DISMISS_SECONDS)
            self._line.recv(1)


def _work(line: socket.socket, things: Sequence[Owned], keep: int | None) -> None:
    """Wait until every daemon's end is closed, clean up, and return."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)  # it ends when the daemon does, not before
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
    """Close all descriptors but those: a listening socket held here would keep its port taken."""
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    end = _MAX_DESCRIPTOR if hard == resource.RLIM_INFINITY else min(hard, _MAX_DESCRIPTOR)
    low = 3
    for descriptor in sorted(number for number in kept if number is not None):
        os.closerange(low, descriptor)
        low = descriptor + 1
    os.closerange(low, end)
