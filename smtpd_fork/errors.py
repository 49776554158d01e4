"""The exception tree; each error knows the exit status that the daemon ends with.

::

    SmtpdForkError            70  a fault of this program
    ├── UsageError            64  a flag or an address that cannot be read
    ├── ConfigError           78  a setting that is well-formed, and cannot be used
    │   └── HandlerError      78  a handler that cannot be imported or constructed
    ├── UnknownUserError      67  --user names an unknown user
    ├── OperatingSystemError  71  the system refuses (address in use, no descriptors, ...)
    ├── CannotCreateError     73  a pid-file, a socket path or a Maildir that cannot be created
    ├── NotPermittedError     77  it takes privileges that the process does not have
    ├── NothingThereError     65  there is no session or refusal of that id
    ├── UnavailableError      69  no daemon answers on its control socket
    └── ProtocolError         76  the control socket speaks another protocol, or another version

The figures are those of sysexits.h.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "MEANINGS",
    "CannotCreateError",
    "ConfigError",
    "ExitStatus",
    "HandlerError",
    "NotPermittedError",
    "NothingThereError",
    "OperatingSystemError",
    "ProtocolError",
    "SmtpdForkError",
    "UnavailableError",
    "UnknownUserError",
    "UsageError",
    "error_origin",
    "forget_frames",
]


class ExitStatus(IntEnum):
    """Every status the command can end with: 0, and those of sysexits.h."""

    OK = os.EX_OK
    USAGE = os.EX_USAGE
    NOTHING_THERE = os.EX_DATAERR
    NO_USER = os.EX_NOUSER
    UNAVAILABLE = os.EX_UNAVAILABLE
    SOFTWARE = os.EX_SOFTWARE
    OS_ERROR = os.EX_OSERR
    CANNOT_CREATE = os.EX_CANTCREAT
    CUT = os.EX_TEMPFAIL
    PROTOCOL = os.EX_PROTOCOL
    NOT_PERMITTED = os.EX_NOPERM
    CONFIG = os.EX_CONFIG


MEANINGS = {
    ExitStatus.OK: "Ended as it was told.",
    ExitStatus.USAGE: "Usage: a flag, a variable or an address that cannot be read.",
    ExitStatus.NOTHING_THERE: "There is no such session, or refusal, as kick or explain names.",
    ExitStatus.NO_USER: "There is no such user.",
    ExitStatus.UNAVAILABLE: "No daemon answers on the control socket.",
    ExitStatus.SOFTWARE: "A fault of this program.",
    ExitStatus.OS_ERROR: "The system said no: a port is taken, there are no more processes.",
    ExitStatus.CANNOT_CREATE: "A pid-file, a socket, a Maildir or a log that cannot be made.",
    ExitStatus.CUT: "Stopped as it was told, and sessions were cut, or a handler that hung.",
    ExitStatus.PROTOCOL: "What answers on the control socket speaks another language.",
    ExitStatus.NOT_PERMITTED: "It takes privileges that the process does not have.",
    ExitStatus.CONFIG: "A setting that cannot be had, or a fault of the file of --config.",
}
"""Meanings for the manual page."""


class SmtpdForkError(Exception):
    """Base of all errors; the text is one line for an administrator."""

    exit_status = ExitStatus.SOFTWARE

    settings: tuple[str, ...] = ()
    """The settings that led to it, if known; see :func:`error_origin`."""


class UsageError(SmtpdForkError):
    """A flag, an environment variable or an address that cannot be read (64)."""

    exit_status = ExitStatus.USAGE


class ConfigError(SmtpdForkError):
    """A setting that can be read, and cannot be used (78)."""

    exit_status = ExitStatus.CONFIG


class HandlerError(ConfigError):
    """A handler that cannot be found, imported or constructed (78)."""


class UnknownUserError(SmtpdForkError):
    """``--user`` names a user that the system does not know (67)."""

    exit_status = ExitStatus.NO_USER


class OperatingSystemError(SmtpdForkError):
    """The operating system refuses something at the start (71)."""

    exit_status = ExitStatus.OS_ERROR


class CannotCreateError(SmtpdForkError):
    """A file, a socket path or a Maildir that cannot be created (73)."""

    exit_status = ExitStatus.CANNOT_CREATE


class NotPermittedError(SmtpdForkError):
    """Privileges that the process does not have (77)."""

    exit_status = ExitStatus.NOT_PERMITTED


class NothingThereError(SmtpdForkError):
    """There is no session or refusal of that id (65)."""

    exit_status = ExitStatus.NOTHING_THERE


class UnavailableError(SmtpdForkError):
    """No daemon answers on its control socket, or not in time (69)."""

    exit_status = ExitStatus.UNAVAILABLE


class ProtocolError(SmtpdForkError):
    """The control socket speaks another protocol, or another version of it (76)."""

    exit_status = ExitStatus.PROTOCOL


@contextmanager
def error_origin(*settings: str) -> Iterator[None]:
    """Note on an error raised in this context that *settings* led to it."""
    try:
        yield
    except SmtpdForkError as error:
        error.settings = settings
        raise


def forget_frames(error: BaseException) -> None:
    """Drop the tracebacks of an error that was handled.

    asyncio holds the errors of handshakes in frames to which the errors refer: a cycle that keeps
    the memory of the connection until the garbage collector runs.
    """
    each: BaseException | None = error
    while each is not None:
        each.__traceback__ = None
        each = each.__context__
