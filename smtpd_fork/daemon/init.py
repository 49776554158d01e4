"""Init: the tasks of process 1 in a container, which the daemon cannot do itself.

Orphaned processes become children of process 1, which must wait for them; otherwise they remain as
zombies until no more processes can be created. A program with children of its own cannot do that:
waiting for any child would take exit statuses from asyncio, uvloop and subprocess, and a child
cannot be distinguished from an orphan. Therefore process 1 forks once; it forwards signals and
waits for all processes, and its child is the daemon. The two share their memory until they write to
it, so the cost is low.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import NoReturn

from smtpd_fork.errors import ExitStatus, OperatingSystemError

__all__ = ["become_init_if_pid_1"]

INIT = 1

_PASSED_ON = {
    signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2,
    signal.SIGWINCH, signal.SIGALRM, signal.SIGCONT,
}  # fmt: skip
"""Signals that are forwarded to the daemon."""


def become_init_if_pid_1() -> bool:
    """Fork if this is process 1, and return in the child; otherwise do nothing.

    Process 1 ends when the child ends, with the child's exit status, or 128 plus the number of the
    signal that ended it.

    :returns: whether this process is the child
    :raises OperatingSystemError: no more processes are available
    """
    if os.getpid() != INIT:
        return False
    # While SIGCHLD is ignored, the kernel discards the exit statuses of children.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    awaited = {*_PASSED_ON, signal.SIGCHLD}
    # Blocked before the fork, so that no signal is lost; sigwait() reads them one by one.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    try:
        child = os.fork()
    except OSError as error:
        raise OperatingSystemError(f"cannot start the daemon: {error.strerror}") from None
    if child:
        _run_as_init(child, awaited)
    # A process group of its own: a terminal signals the whole group, and process 1 forwards the
    # signal, so that the daemon would get it twice.
    os.setpgid(0, 0)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return True


def _run_as_init(child: int, awaited: set[signal.Signals]) -> NoReturn:
    while True:
        number = signal.sigwait(awaited)
        if number != signal.SIGCHLD:
            with suppress(ProcessLookupError):
                os.kill(child, number)
            continue
        status = _reap(child)
        if status is not None:
            # sys.exit() would run cleanup code for files that belong to the daemon. The kernel
            # ends all other processes of the container.
            os._exit(status)


def _reap(child: int) -> int | None:
    """Wait for all ended processes; return the exit status of *child* if it is one of them."""
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
