"""The handover of an upgrade: what a new process inherits, and the line between the two processes.

The new process inherits descriptors, as with socket activation; an environment variable describes
them. The line is a socket pair. It is also the standard error of the new process until
:meth:`Successor.of_environment`, so that the old process sees a failure of the interpreter as well.
The new process sends, line by line::

    pid N                its process id, once it has detached
    ready                it can serve, and accepts nobody yet
    failed REASON        it cannot serve

The old process answers ``yours`` (everything belongs to the new one from now on) or ``no``. Before
``yours`` the new process removes nothing and answers no client. End of file without an answer means
that the old process is gone, and counts as ``yours``.
"""

from __future__ import annotations

import os
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import msgspec

from smtpd_fork.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping, Sequence

__all__ = [
    "NO",
    "TAKE",
    "TAKEOVER",
    "HandedListener",
    "HandedPidFile",
    "Handover",
    "Invocation",
    "Successor",
]

TAKEOVER = "SMTPD_FORK_TAKEOVER"
"""The environment variable."""

TAKE, NO = b"yours\n", b"no\n"

MAX_REASON = 2048
"""Bytes of a reason; it is one line."""

_STDERR = 2

_OF_ONE_PROCESS = (TAKEOVER, "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_PID")
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

    :ivar descriptor: the socket
    :ivar scheme: the protocol, as in ``--listen-address``
    :ivar address: the address as it was configured
    :ivar inherited: the old process had it from a service manager
    """

    descriptor: int
    scheme: str
    address: str
    inherited: bool


class HandedPidFile(msgspec.Struct, frozen=True, array_like=True):
    """A pid-file, open and locked."""

    descriptor: int
    path: str


class Handover(msgspec.Struct, frozen=True, kw_only=True):
    """What a new process inherits; all figures but ``parent`` are descriptors.

    :ivar parent: process id of the old process
    :ivar stderr: becomes the standard error of the new process
    :ivar listeners: the SMTP listeners
    :ivar pid_file: None if there is none
    :ivar janitor: the line to it; None if there is none
    :ivar sockets: those of services, by name
    """

    parent: int
    stderr: int
    listeners: list[HandedListener] = []
    pid_file: HandedPidFile | None = None
    janitor: int | None = None
    sockets: dict[str, int] = {}

    @property
    def descriptors(self) -> list[int]:
        """All of them."""
        found = [self.stderr, *(each.descriptor for each in self.listeners)]
        found += self.sockets.values()
        if self.pid_file is not None:
            found.append(self.pid_file.descriptor)
        if self.janitor is not None:
            found.append(self.janitor)
        return found

    def text(self) -> str:
        """Return it as the value of the environment variable."""
        return msgspec.json.encode(self).decode()


class Successor:
    """This process as the successor of another one, with its end of the line.

    :ivar handover: what it inherited
    :ivar line: the line to the old process
    """

    def __init__(self, handover: Handover, line: socket.socket) -> None:
        self.handover = handover
        self.line = line

    @classmethod
    def of_environment(cls, environment: MutableMapping[str, str]) -> Self | None:
        """Return the successor that the environment describes; None if there is no old process.

        :raises UsageError: the variable cannot be read, or is not meant for this process
        """
        text = environment.pop(TAKEOVER, None)
        if text is None:
            return None
        try:
            handover = msgspec.json.decode(text, type=Handover)
        except (msgspec.DecodeError, UnicodeError) as error:
            raise UsageError(f"{TAKEOVER} cannot be read: {error}") from None
        if handover.parent != os.getppid():
            raise UsageError(f"{TAKEOVER} is not for this process; unset it")
        try:
            for descriptor in handover.descriptors:
                os.set_inheritable(descriptor, False)
            line = socket.socket(fileno=os.dup(_STDERR))
            os.dup2(handover.stderr, _STDERR)
            os.close(handover.stderr)
        except (OSError, OverflowError):
            raise UsageError(f"{TAKEOVER} names descriptors that are not open") from None
        return cls(handover, line)

    def began(self) -> None:
        """Send the process id."""
        self._send(f"pid {os.getpid()}")

    def ready(self) -> None:
        """Tell the old process that this one can serve."""
        self._send("ready")

    def failed(self, reason: str) -> None:
        """Tell the old process why this one cannot serve."""
        self._send(f"failed {' '.join(reason.split())}")

    def _send(self, text: str) -> None:
        with suppress(OSError):  # the old process may be gone
            self.line.sendall(text.encode("utf-8", "replace")[:MAX_REASON] + b"\n")
