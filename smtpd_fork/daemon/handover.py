"""The handover of an upgrade: the inherited descriptors, and the protocol between both processes.

The new process inherits descriptors, as with socket activation; an environment variable describes
them. The two processes are connected by a socket pair. It is also the standard error of the new
process until :meth:`Successor.from_environment`, so that the old process receives errors of the
interpreter as well. The new process sends these lines::

    pid N                its process id, if that is not the id of the process that was started
    reparented           the process that was started (its parent) ends now
    ready                it can serve, and accepts no client yet; or all its processes serve
    failed REASON        it cannot serve

The old process answers ``yours`` (the new process owns everything from now on) or ``no``. Before
``yours`` the new process removes nothing and answers no client. End of file without an answer means
that the old process has ended, and has the same effect as ``yours``.
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
    "YOURS",
    "Handover",
    "HandoverListener",
    "Invocation",
    "Successor",
    "Supervised",
]  # fmt: skip

HANDOVER_VARIABLE = "SMTPD_FORK_TAKEOVER"
"""Name of the environment variable that describes the handover."""

YOURS, NO = b"yours\n", b"no\n"

MAX_LINE_BYTES = 2048
"""Maximum bytes of a line that the new process sends, without its line end."""

_STDERR = 2

_SIGNAL_STATUS = 128
"""A process that was ended by signal N gets the exit status 128 + N, as in sh(1)."""

_PER_PROCESS_VARIABLES = {
    *(HANDOVER_VARIABLE, "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_PID"),
}
"""Variables that a new process does not inherit; it gets a :class:`Handover` instead."""


@dataclass(frozen=True, slots=True)
class Invocation:
    """The command, directory and environment of a process, to start another one in the same way.

    :ivar command: the interpreter and its arguments
    :ivar directory: the current directory; None if it does not exist
    :ivar environment: without the variables that are meant for one process only
    """

    command: Sequence[str]
    directory: str | None
    environment: Mapping[str, str]

    @classmethod
    def current(cls) -> Self:
        """Return the invocation of this process; call it before the process changes any of it."""
        try:
            directory: str | None = os.getcwd()  # noqa: PTH109 - what subprocess takes
        except OSError:
            directory = None
        environment = {k: v for k, v in os.environ.items() if k not in _PER_PROCESS_VARIABLES}
        # sys.executable, as orig_argv[0] may be relative to PATH; options such as -X are kept.
        return cls([sys.executable, *sys.orig_argv[1:]], directory, environment)


class HandoverListener(msgspec.Struct, frozen=True, array_like=True):
    """A listening socket of the old process.

    :ivar scheme: protocol and flags, as in ``--listen-address``
    :ivar address: the configured address
    :ivar inherited: whether the old process received it from a service manager
    """

    descriptor: int
    scheme: str
    address: str
    inherited: bool


class Supervised(msgspec.Struct, frozen=True, array_like=True):
    """The position of a process under a supervisor (``--processes``).

    :ivar number: number of the process, from 1
    :ivar of: number of processes in total
    :ivar line: descriptor of the connection for requests and orders of the supervisor; end of file
        means that the supervisor has ended
    """

    number: int
    of: int
    line: int


class Handover(msgspec.Struct, frozen=True, kw_only=True):
    """The file descriptors and other data that a new process inherits.

    :ivar parent: process id of the old process
    :ivar stderr: descriptor for the standard error of the new process
    :ivar pid_file: descriptor of the locked pid-file, and its path; None without a pid-file
    :ivar cleanup_process: descriptor of the connection to it; None without a cleanup process
    :ivar denials: descriptor of shared memory with the networks that were denied at run time
    :ivar sockets: descriptors of other services (metrics, control socket), by name
    :ivar supervised: set if the old process is the supervisor of the new one, and is not replaced
    :ivar supervisor: descriptor of the connection to the supervisor that is replaced, and the
        version of its protocol
    """

    parent: int
    stderr: int
    listeners: list[HandoverListener] = []
    pid_file: tuple[int, str] | None = None
    cleanup_process: int | None = msgspec.field(default=None, name="janitor")  # as 0.1.0 sends it
    denials: int | None = None
    sockets: dict[str, int] = {}
    supervised: Supervised | None = None
    supervisor: tuple[int, int] | None = None

    @property
    def descriptors(self) -> list[int]:
        """All file descriptors of the handover."""
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
        """Return the value of the environment variable."""
        return msgspec.json.encode(self).decode()


class Successor:
    """This process in the role of the new process of an upgrade, with the socket to the old one."""

    def __init__(self, handover: Handover, line: socket.socket) -> None:
        self.handover = handover
        self.line = line
        self._parent: int | None = None  # a pipe to it

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str]) -> Self | None:
        """Return the successor that *environment* describes; None if there is no old process.

        With a service manager it returns in a child process, see :meth:`_fork_away`.

        :raises UsageError: the variable is invalid, or is meant for another process
        :raises OperatingSystemError: no more processes are available
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
            successor._fork_away()
        return successor

    def _fork_away(self) -> None:
        """Fork, and return in the child; the parent waits for :meth:`ready` or the child's end.

        When the parent has ended, the child becomes a child of systemd. systemd does not wait for a
        main process that is not its own child: ``systemctl stop`` would send SIGKILL right after
        SIGTERM.
        """
        self._parent = fork_with_pipe(_wait_for_child, "cannot fork")
        self.send_pid()

    def send_pid(self) -> None:
        """Send the id of this process to the old process."""
        self._send(f"pid {os.getpid()}")

    def ready(self) -> None:
        """Report to the old process that this one can serve."""
        if self._parent is not None:
            with suppress(OSError):  # the parent may have been killed
                os.write(self._parent, b"\n")
            os.close(self._parent)
            self._parent = None
            self._send("reparented")
        self._send("ready")

    def failed(self, reason: str) -> None:
        """Report to the old process why this one cannot serve."""
        self._send(f"failed {' '.join(reason.split())}")

    def _send(self, text: str) -> None:
        with suppress(OSError):  # the old process may have ended
            self.line.sendall(text.encode("utf-8", "replace")[:MAX_LINE_BYTES] + b"\n")


def _wait_for_child(child: int, read: int) -> NoReturn:
    """Exit with 0 when *child* writes to the pipe, or with its status when it ends."""
    if os.read(read, 1):
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os._exit(status if status >= 0 else _SIGNAL_STATUS - status)
