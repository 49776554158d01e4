"""Detaching from the terminal (daemon(7)), with a parent that waits for the result of the start.

The parent exits with 0 once the daemon serves. Otherwise it prints the daemon's error, one line,
and exits with its status, as without a fork.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from smtpd_fork.daemon.descriptors import null_standard_descriptors
from smtpd_fork.errors import ExitStatus, OperatingSystemError

__all__ = ["Word", "detach", "fork_with_pipe"]

UMASK = 0o022

MAX_WORD = 4096
"""Bytes of a message; at most PIPE_BUF, so that it is written at once."""


_NO_WORD = b"smtpd-fork: the daemon exited during startup (status 70): it was killed, or crashed"
"""Printed for a daemon that has ended and told nothing."""


class Word:
    """The one message of the daemon to its parent."""

    def __init__(self, pipe: int) -> None:
        self._pipe: int | None = pipe

    def serving(self, warning: str = "") -> None:
        """Tell the parent that the daemon serves.

        :param warning: printed by the parent; empty for none
        """
        self._say(b"%d\n%s" % (ExitStatus.OK, warning.encode("utf-8", "replace")))

    def failed(self, status: int, reason: str) -> None:
        """Tell the parent why the daemon does not serve."""
        self._say(b"%d\n%s" % (status, reason.encode("utf-8", "replace")))

    def _say(self, word: bytes) -> None:
        if self._pipe is None:
            return
        pipe, self._pipe = self._pipe, None
        with suppress(OSError):  # the parent may be gone
            os.write(pipe, word[:MAX_WORD])
        os.close(pipe)


def detach() -> Word:
    """Return in the daemon: a process without a terminal, in / and with stdio on /dev/null.

    The calling process does not return: it waits for the message, and exits.

    :raises OperatingSystemError: there can be no more processes or descriptors
    """
    word = Word(fork_with_pipe(_wait_for_word, "cannot detach"))
    os.setsid()
    # The leader of a session can get a terminal by opening one; its child cannot.
    try:
        if os.fork():
            os._exit(ExitStatus.OK)
    except OSError as error:
        word.failed(ExitStatus.OS_ERROR, f"smtpd-fork: cannot detach: {error.strerror}")
        os._exit(ExitStatus.OS_ERROR)
    os.chdir("/")
    os.umask(UMASK)
    null_standard_descriptors()
    return word


def fork_with_pipe(wait: Callable[[int, int], NoReturn], failure: str) -> int:
    """Return in a child process the end of a pipe that it writes to.

    :param wait: is called in this process, with the child's id and the end that is read
    :param failure: begins the error
    :raises OperatingSystemError: there can be no more processes or descriptors
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


def _wait_for_word(child: int, read: int) -> NoReturn:
    os.waitpid(child, 0)
    heard = b""
    while chunk := os.read(read, MAX_WORD):
        heard += chunk
    status, _, reason = heard.partition(b"\n")
    if not status.isdigit():
        status, reason = b"%d" % ExitStatus.SOFTWARE, _NO_WORD
    if reason:
        sys.stderr.write(reason.decode("utf-8", "replace") + "\n")
        sys.stderr.flush()
    # Not sys.exit(): what is open here belongs to the daemon, which cleans it up.
    os._exit(int(status))
