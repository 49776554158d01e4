"""Estate: what a process leaves to the one that takes its place, and the line between the two.

The new process inherits descriptors, as with socket activation; one variable of its environment
says which is what. The line is a socket pair, and the new one's standard error until it knows
better: even what an interpreter says that does not get as far as this module is heard. On it the
new one says, line by line::

    pid N                who it is, once it has detached
    ready                it can serve, and accepts nobody yet
    failed REASON        it cannot

and the old one answers ``yours`` (all of it, from now on) or ``no``. Until ``yours`` nothing is
the new one's: whatever becomes of it, it removes nothing and answers nobody on the old one's
behalf. A line that ends without an answer means that the old one is gone: then it is its as well.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Self

import msgspec

from smtpd_fork.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import MutableMapping

__all__ = ["NO", "TAKEOVER", "YOURS", "Estate", "Heir", "LeftListener", "LeftPidFile"]

TAKEOVER = "SMTPD_FORK_TAKEOVER"
"""The variable."""

YOURS, NO = b"yours\n", b"no\n"

MAX_REASON = 2048
"""Bytes of a reason; it is one line."""

_STDERR = 2


class LeftListener(msgspec.Struct, frozen=True, array_like=True):
    """A listening socket.

    :ivar descriptor: the socket
    :ivar scheme: what is spoken there
    :ivar address: what was asked for when it was bound
    :ivar inherited: the old process had it from a service manager
    """

    descriptor: int
    scheme: str
    address: str
    inherited: bool


class LeftPidFile(msgspec.Struct, frozen=True, array_like=True):
    """A pid-file, open and locked."""

    descriptor: int
    path: str


class Estate(msgspec.Struct, frozen=True, kw_only=True):
    """What is left; all figures are descriptors.

    :ivar parent: process id of the old process
    :ivar stderr: what is to become the new one's standard error
    :ivar listeners: the sockets that clients come in by
    :ivar pid_file: None if there is none
    :ivar janitor: the line to it; None if there is none
    :ivar sockets: of companions, by name
    """

    parent: int
    stderr: int
    listeners: list[LeftListener] = []
    pid_file: LeftPidFile | None = None
    janitor: int | None = None
    sockets: dict[str, int] = {}

    @property
    def descriptors(self) -> list[int]:
        """All of them."""
        found = [self.stderr, *(left.descriptor for left in self.listeners)]
        found += self.sockets.values()
        if self.pid_file is not None:
            found.append(self.pid_file.descriptor)
        if self.janitor is not None:
            found.append(self.janitor)
        return found

    def text(self) -> str:
        """Return it as the variable's value."""
        return msgspec.json.encode(self).decode()


class Heir:
    """The new process's end of the line.

    :ivar estate: what it was left
    :ivar line: to the old one
    """

    def __init__(self, estate: Estate, line: socket.socket) -> None:
        self.estate = estate
        self.line = line

    @classmethod
    def of_environment(cls, environment: MutableMapping[str, str]) -> Self | None:
        """Return what this process was left, or None if it is nobody's heir.

        :raises UsageError: the variable cannot be read, or is not meant for this process
        """
        text = environment.pop(TAKEOVER, None)
        if text is None:
            return None
        try:
            estate = msgspec.json.decode(text, type=Estate)
        except (msgspec.DecodeError, UnicodeError) as error:
            raise UsageError(f"{TAKEOVER} cannot be read: {error}") from None
        if estate.parent != os.getppid():
            raise UsageError(f"{TAKEOVER} is not for this process; unset it")
        try:
            for descriptor in estate.descriptors:
                os.set_inheritable(descriptor, False)
            line = socket.socket(fileno=os.dup(_STDERR))
            os.dup2(estate.stderr, _STDERR)
            os.close(estate.stderr)
        except (OSError, OverflowError):
            raise UsageError(f"{TAKEOVER} names descriptors that are not open") from None
        return cls(estate, line)

    def began(self) -> None:
        """Say who it is."""
        self._say(f"pid {os.getpid()}")

    def ready(self) -> None:
        """Say that it can serve."""
        self._say("ready")

    def failed(self, reason: str) -> None:
        """Say that it cannot."""
        self._say(f"failed {' '.join(reason.split())}")

    def _say(self, text: str) -> None:
        with suppress(OSError):  # an old process that was killed hears nothing
            self.line.sendall(text.encode("utf-8", "replace")[:MAX_REASON] + b"\n")
