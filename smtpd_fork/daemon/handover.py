"""The handover of an upgrade: what a new process inherits, and the line between the two processes.

The new process inherits descriptors, as with socket activation; an environment variable describes
them. The line is a socket pair. It is also the standard error of the new process until
:meth:`Successor.of_environment`, so that the old process sees a failure of the interpreter as well.
The new process sends, line by line::

    pid N                its process id, once it is another than the one that was started
    reparented           the process that was started, its parent, ends now
    ready                it can serve, and accepts no client yet; or all its processes serve
    failed REASON        it cannot serve

The old process answers ``yours`` (everything belongs to the new one from now on) or ``no``. Before
``yours`` the new process removes nothing and answers no client. End of file without an answer means
that the old process is gone, and counts as ``yours``.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn, Self

import msgspec

from smtpd_fork.daemon.detach import fork_with_pipe
from smtpd_fork.errors import UsageError

__all__ = [
    "HANDOVER_VARIABLE",
    "NO",
    "TAKE",
    "HandedListener",
    "Handover",
    "Invocation",
    "Successor",
    "Supervised",
]  # fmt: skip

HANDOVER_VARIABLE = "SMTPD_FORK_TAKEOVER"
"""The environment variable."""

TAKE, NO = b"yours\n", b"no\n"

MAX_REASON = 2048
"""Bytes of a reason; it is one line."""

_STDERR = 2

_SIGNALLED = 128
"""Added to a signal's number, it is the exit status of a process that it ended, as in sh(1)."""

_OF_ONE_PROCESS = (HANDOVER_VARIABLE, "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_PID")
"""Variables that are not for a new process; it gets a :class:`Handover` in their place."""


@dataclass(frozen=True, slots=True)
class Invocation:
    """How a process was started, to start another one like it.

    :ivar command: the interpreter and its arguments
    :ivar directory: the current directory; None if there was none
    :ivar environment: without the variables for this process alone
    """

    command: Sequence[str]
    directory: str | None
    environment: Mapping[str, str]

    @classmethod
    def current(cls) -> Self:
        """Return the invocation of this process; call it before anything is changed."""
        try:
            directory: str | None = os.getcwd()  # noqa: PTH109 - what subprocess takes
        except OSError:
            directory = None
        environment = {k: v for k, v in os.environ.items() if k not in _OF_ONE_PROCESS}
        # The interpreter may have been found by PATH; its options (-X, -W) are kept.
        return cls([sys.executable, *sys.orig_argv[1:]], directory, environment)


class HandedListener(msgspec.Struct, frozen=True, array_like=True):
    """A listening socket.

    :ivar scheme: the protocol, as in ``--listen-address``
    :ivar address: the address as it was configured
    :ivar inherited: the old process had it from a service manager
    """

    descriptor: int
    scheme: str
    address: str
    inherited: bool


class Supervised(msgspec.Struct, frozen=True, array_like=True):
    """The position of a process under a supervisor (``--processes``).

    :ivar number: from 1
    :ivar of: how many there are
    :ivar line: a descriptor, on which the supervisor asks and orders; its end of file is the
        supervisor's end
    """

    number: int
    of: int
    line: int


class Handover(msgspec.Struct, frozen=True, kw_only=True):
    """What a new process inherits; all numbers but ``parent`` are file descriptors.

    :ivar parent: process id of the old process
    :ivar stderr: becomes the standard error of the new process
    :ivar pid_file: open and locked, and its path; None if there is none
    :ivar cleanup_process: the line to it; None if there is none
    :ivar denials: memory with the networks that were denied at run time
    :ivar sockets: those of services, by name
    :ivar supervised: set if the old process is not replaced, but the supervisor of the new one
    :ivar supervisor: the line to the supervisor that is replaced, and the protocol of that line
    """

    parent: int
    stderr: int
    listeners: list[HandedListener] = []
    pid_file: tuple[int, str] | None = None
    cleanup_process: int | None = msgspec.field(default=None, name="janitor")  # as 0.1.0 sends it
    denials: int | None = None
    sockets: dict[str, int] = {}
    supervised: Supervised | None = None
    supervisor: tuple[int, int] | None = None

    @property
    def descriptors(self) -> list[int]:
        """All of them."""
        found = [self.stderr, *(each.descriptor for each in self.listeners), *self.sockets.values()]
        if self.pid_file is not None:
            found.append(self.pid_file[0])
        found += [each for each in (self.cleanup_process, self.denials) if each is not None]
        if self.supervised is not None:
            found.append(self.supervised.line)
        if self.supervisor is not None:
            found.append(self.supervisor[0])
        return found

    def text(self) -> str:
        """Return it as the value of the environment variable."""
        return msgspec.json.encode(self).decode()


class Successor:
    """This process as the successor of another one, with its end of the line."""

    def __init__(self, handover: Handover, line: socket.socket) -> None:
        self.handover = handover
        self.line = line
        self._parent: int | None = None  # a pipe to it

    @classmethod
    def of_environment(cls, environment: MutableMapping[str, str]) -> Self | None:
        """Return the successor that the environment describes; None if there is no old process.

        With a service manager it returns in a child process, see :meth:`_leave_parent`.

        :raises UsageError: the variable cannot be read, or is not meant for this process
        :raises OperatingSystemError: there can be no more processes
        """
        text = environment.pop(HANDOVER_VARIABLE, None)
        if text is None:
            return None
        try:
            handover = msgspec.json.decode(text, type=Handover)
        except (msgspec.DecodeError, UnicodeError) as error:
            raise UsageError(f"{HANDOVER_VARIABLE} cannot be read: {error}") from None
        if handover.parent != os.getppid():
            raise UsageError(f"{HANDOVER_VARIABLE} is not for this process; unset it")
        try:
            for descriptor in handover.descriptors:
                os.set_inheritable(descriptor, False)
            line = socket.socket(fileno=os.dup(_STDERR))
            os.dup2(handover.stderr, _STDERR)
            os.close(handover.stderr)
        except (OSError, OverflowError):
            raise UsageError(f"{HANDOVER_VARIABLE} names descriptors that are not open") from None
        successor = cls(handover, line)
        if "NOTIFY_SOCKET" in environment and handover.supervised is None:
            successor._leave_parent()
        return successor

    def _leave_parent(self) -> None:
        """Return in a child of this process, which stays until :meth:`ready` or the child's end.

        The child is an orphan then, and so systemd's own child. Of a main process that is not,
        systemd does not await the end: ``systemctl stop`` would send SIGKILL right after SIGTERM.
        """
        self._parent = fork_with_pipe(_wait_for, "cannot fork")
        self.began()

    def began(self) -> None:
        """Send the process id."""
        self._send(f"pid {os.getpid()}")

    def ready(self) -> None:
        """Tell the old process that this one can serve."""
        if self._parent is not None:
            with suppress(OSError):  # it was killed
                os.write(self._parent, b"\n")
            os.close(self._parent)
            self._parent = None
            self._send("reparented")
        self._send("ready")

    def failed(self, reason: str) -> None:
        """Tell the old process why this one cannot serve."""
        self._send(f"failed {' '.join(reason.split())}")

    def _send(self, text: str) -> None:
        with suppress(OSError):  # the old process may be gone
            self.line.sendall(text.encode("utf-8", "replace")[:MAX_REASON] + b"\n")


def _wait_for(child: int, read: int) -> NoReturn:
    """End once *child* writes to the pipe; or when it ends, with its status."""
    if os.read(read, 1):
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os._exit(status if status >= 0 else _SIGNALLED - status)
