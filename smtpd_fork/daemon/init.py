"""Init: the duties of process 1 in a container, which the daemon cannot do itself.

Orphans become children of process 1, which has to wait for them; otherwise they stay as zombies
until no more processes are possible. A program that has children of its own cannot do that: waiting
for any child takes exit statuses away from asyncio, uvloop and subprocess, and nothing tells a
child from an orphan. So process 1 forks once, passes signals on and waits for all processes, and
its child is the daemon. Memory is shared until it is written to, so this costs little.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import NoReturn

from smtpd_fork.errors import ExitStatus, OperatingSystemError

__all__ = ["become_init_if_first"]

INIT = 1

_PASSED_ON = {
    signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2,
    signal.SIGWINCH, signal.SIGALRM, signal.SIGCONT,
}  # fmt: skip
"""Signals that are passed on to the daemon."""


def become_init_if_first() -> bool:
    """Do nothing, unless this is process 1; then return in a child of it.

    Process 1 ends when that child does, with its exit status, or 128 and the number of the signal.

    :returns: whether this process is such a child
    :raises OperatingSystemError: there can be no more processes
    """
    if os.getpid() != INIT:
        return False
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, there would be nothing to wait for
    heard = {*_PASSED_ON, signal.SIGCHLD}
    # Blocked before there is a child, so that none is lost; read one by one, by sigwait().
    before = signal.pthread_sigmask(signal.SIG_BLOCK, heard)
    try:
        child = os.fork()
    except OSError as error:
        raise OperatingSystemError(f"cannot start the daemon: {error.strerror}") from None
    if child:
        _look_after(child, heard)
    # In a group of its own: a terminal signals the whole group, and process 1 passes that on.
    os.setpgid(0, 0)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return True


def _look_after(child: int, heard: set[signal.Signals]) -> NoReturn:
    while True:
        number = signal.sigwait(heard)
        if number != signal.SIGCHLD:
            with suppress(ProcessLookupError):
                os.kill(child, number)
            continue
        status = _reap(child)
        if status is not None:
            # Not sys.exit(): what is open here is the daemon's. The rest ends with process 1.
            os._exit(status)


def _reap(child: int) -> int | None:
    """Wait for all processes that have ended; return the exit status if *child* is among them."""
    result = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ExitStatus.OS_ERROR if result is None else result
        if not pid:
            return result
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            result = code if code >= 0 else 128 - code
