"""Detaching from the terminal (daemon(7)); the parent process waits for the result of the start.

The parent exits with status 0 as soon as the daemon serves. Otherwise it prints the daemon's error
in one line, and exits with the status of that error, as if nothing had been forked.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from smtpd_fork.daemon.descriptors import null_standard_descriptors
from smtpd_fork.errors import ExitStatus, OperatingSystemError

__all__ = ["StartupReport", "detach", "fork_with_pipe"]

UMASK = 0o022

MAX_REPORT_BYTES = 4096
"""Maximum size of a report; at most PIPE_BUF, so that write(2) is atomic."""


_NO_REPORT = b"smtpd-fork: the daemon exited during startup (status 70): it was killed, or crashed"
"""Printed if the daemon has ended without a report."""


class StartupReport:
    """Reports the result of the start to the parent process, once."""

    def __init__(self, pipe: int) -> None:
        self._pipe: int | None = pipe

    def serving(self, warning: str = "") -> None:
        """Report that the daemon serves.

        :param warning: printed by the parent; empty for none
        """
        self._send(b"%d\n%s" % (ExitStatus.OK, warning.encode("utf-8", "replace")))

    def failed(self, status: int, reason: str) -> None:
        """Report why the daemon cannot serve.

        :param status: exit status of the parent
        """
        self._send(b"%d\n%s" % (status, reason.encode("utf-8", "replace")))

    def _send(self, report: bytes) -> None:
        if self._pipe is None:
            return
        pipe, self._pipe = self._pipe, None
        with suppress(OSError):  # the parent may have ended
            os.write(pipe, report[:MAX_REPORT_BYTES])
        os.close(pipe)


def detach() -> StartupReport:
    """Fork, and return in the daemon: without a terminal, in / and with stdio on /dev/null.

    The calling process does not return: it waits for the report, and exits.

    :raises OperatingSystemError: no more processes or descriptors are available
    """
    report = StartupReport(fork_with_pipe(_wait_for_report, "cannot detach"))
    os.setsid()
    # A session leader could acquire a controlling terminal by opening one; its child cannot.
    try:
        if os.fork():
            os._exit(ExitStatus.OK)
    except OSError as error:
        report.failed(ExitStatus.OS_ERROR, f"smtpd-fork: cannot detach: {error.strerror}")
        os._exit(ExitStatus.OS_ERROR)
    os.chdir("/")
    os.umask(UMASK)
    null_standard_descriptors()
    return report


def fork_with_pipe(wait: Callable[[int, int], NoReturn], failure: str) -> int:
    """Fork, and return in the child process the write end of a pipe to this process.

    :param wait: called in this process, with the child's process id and the read end of the pipe
    :param failure: beginning of the error message
    :raises OperatingSystemError: no more processes or descriptors are available
    """
    try:
        read, write = os.pipe()
        child = os.fork()
    except OSError as error:
        raise OperatingSystemError(f"{failure}: {error.strerror}") from None
    if child:
        os.close(write)
        wait(child, read)
    os.close(read)
    return write


def _wait_for_report(child: int, read: int) -> NoReturn:
    os.waitpid(child, 0)
    received = b""
    while chunk := os.read(read, MAX_REPORT_BYTES):
        received += chunk
    status, _, reason = received.partition(b"\n")
    if not status.isdigit():
        status, reason = b"%d" % ExitStatus.SOFTWARE, _NO_REPORT
    if reason:
        sys.stderr.write(reason.decode("utf-8", "replace") + "\n")
        sys.stderr.flush()
    # sys.exit() would run cleanup code for files and sockets that belong to the daemon.
    os._exit(int(status))
