"""The exceptions of this package; each class has the exit status of a command that fails with it.

::

    SmtpdForkError            70  internal error
    ├── UsageError            64  a flag or an address cannot be read
    ├── ConfigError           78  a setting is well-formed, but cannot be used
    │   ├── HandlerError      78  a handler cannot be imported or constructed
    │   └── MissingLibraryError 78  a library of an extra is not installed
    ├── UnknownUserError      67  the user of --user does not exist
    ├── OperatingSystemError  71  a system call failed (address in use, no file descriptors, ...)
    ├── CannotCreateError     73  a pid file, a socket path or a Maildir cannot be created
    ├── NotPermittedError     77  the process lacks the necessary privileges
    ├── NotFoundError     65  there is no session or refusal with this id
    ├── UnavailableError      69  no daemon answers on the control socket
    └── ProtocolError         76  the control socket uses another protocol, or another version

The statuses are those of sysexits.h.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum

__all__ = [
    "MEANINGS",
    "CannotCreateError",
    "ConfigError",
    "ExitStatus",
    "HandlerError",
    "MissingLibraryError",
    "NotFoundError",
    "NotPermittedError",
    "OperatingSystemError",
    "ProtocolError",
    "SmtpdForkError",
    "UnavailableError",
    "UnknownUserError",
    "UsageError",
    "describe_error",
    "error_origin",
    "forget_frames",
]  # fmt: skip


class ExitStatus(IntEnum):
    """The exit statuses of the command: 0, and values of sysexits.h."""

    OK = os.EX_OK
    USAGE = os.EX_USAGE
    NOT_FOUND = os.EX_DATAERR
    NO_USER = os.EX_NOUSER
    UNAVAILABLE = os.EX_UNAVAILABLE
    SOFTWARE = os.EX_SOFTWARE
    OS_ERROR = os.EX_OSERR
    CANNOT_CREATE = os.EX_CANTCREAT
    FORCED = os.EX_TEMPFAIL
    PROTOCOL = os.EX_PROTOCOL
    NOT_PERMITTED = os.EX_NOPERM
    CONFIG = os.EX_CONFIG


MEANINGS = {
    ExitStatus.OK: "Successful end.",
    ExitStatus.USAGE: "Usage error: invalid option, variable or address.",
    ExitStatus.NOT_FOUND: "kick, undeny or explain: no such session, denial or refusal.",
    ExitStatus.NO_USER: "The user of --user does not exist.",
    ExitStatus.UNAVAILABLE: "No daemon answers on the control socket.",
    ExitStatus.SOFTWARE: "Internal error.",
    ExitStatus.OS_ERROR: "Operating system error: a port is in use, no more processes.",
    ExitStatus.CANNOT_CREATE: "A pid file, unix socket, Maildir or log file cannot be created.",
    ExitStatus.FORCED: "Stopped, but sessions were closed before they ended, or a handler hung.",
    ExitStatus.PROTOCOL: "The control socket uses another protocol or another version of it.",
    ExitStatus.NOT_PERMITTED: "The process lacks the necessary privileges.",
    ExitStatus.CONFIG: "Configuration error: invalid setting or configuration file.",
}
"""The meaning of each exit status, for the manual page."""


class SmtpdForkError(Exception):
    """The base class of all errors of this package; its text is one line for an administrator."""

    exit_status = ExitStatus.SOFTWARE

    settings: tuple[str, ...] = ()
    """The settings that caused the error, if known; see :func:`error_origin`."""

    def __init_subclass__(cls, *, status: ExitStatus | None = None) -> None:
        if status is not None:
            cls.exit_status = status


class UsageError(SmtpdForkError, status=ExitStatus.USAGE):
    """A flag, an environment variable or an address cannot be read (64)."""


class ConfigError(SmtpdForkError, status=ExitStatus.CONFIG):
    """A setting can be read, but cannot be used (78)."""


class HandlerError(ConfigError):
    """A handler cannot be found, imported or constructed (78).

    :ivar entry: number of the wrong entry in the setting ``handler``, from 1; None if the error
        concerns all entries
    :ivar key: the wrong key of the entry; empty if the error does not concern a key
    """

    entry: int | None = None
    key: str = ""


class MissingLibraryError(ConfigError):
    """A setting needs libraries that are not installed (78).

    :param feature: the setting or value that needs them
    :param extra: the extra of this package that installs them
    :ivar needed: the libraries, and the command that installs them
    """

    def __init__(self, feature: str, libraries: Sequence[str], extra: str) -> None:
        self.needed = f"{' and '.join(libraries)}: pip install 'smtpd-fork[{extra}]'"
        super().__init__(f"{feature} needs {self.needed}")


class UnknownUserError(SmtpdForkError, status=ExitStatus.NO_USER):
    """The user of ``--user`` does not exist (67)."""


class OperatingSystemError(SmtpdForkError, status=ExitStatus.OS_ERROR):
    """A system call failed at the start (71)."""


class CannotCreateError(SmtpdForkError, status=ExitStatus.CANNOT_CREATE):
    """A file, a socket path or a Maildir cannot be created (73)."""


class NotPermittedError(SmtpdForkError, status=ExitStatus.NOT_PERMITTED):
    """The process lacks the necessary privileges (77)."""


class NotFoundError(SmtpdForkError, status=ExitStatus.NOT_FOUND):
    """There is no session, denial or refusal with the id of the command (65)."""


class UnavailableError(SmtpdForkError, status=ExitStatus.UNAVAILABLE):
    """No daemon answers on the control socket, or it does not answer in time (69)."""


class ProtocolError(SmtpdForkError, status=ExitStatus.PROTOCOL):
    """The control socket uses another protocol, or another version of it (76)."""


@contextmanager
def error_origin(*settings: str) -> Iterator[None]:
    """Set the attribute ``settings`` of an error that is raised in this context, if it is empty."""
    try:
        yield
    except SmtpdForkError as error:
        error.settings = error.settings or settings
        raise


def describe_error(error: BaseException | str) -> str:
    """Return the text of an error of a connection; never empty."""
    text = str(error)
    if not text and isinstance(error, (ConnectionError, EOFError)):
        text = "connection closed by the client"
    return text or type(error).__name__


def forget_frames(error: BaseException) -> None:
    """Remove the tracebacks of an error that was handled, and of the errors before it.

    asyncio holds the errors of TLS handshakes in local variables of frames to which their
    tracebacks refer. Such a cycle keeps the memory of the connection until the garbage collector
    runs.
    """
    each: BaseException | None = error
    while each is not None:
        each.__traceback__ = None
        each = each.__context__
