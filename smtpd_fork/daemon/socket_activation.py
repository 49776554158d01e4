"""Socket activation: the descriptors that a service manager passes, sd_listen_fds(3).

``LISTEN_FDS`` is the number of descriptors, of which the first is 3; ``LISTEN_FDNAMES`` has their
names; ``LISTEN_PID`` is the id of the process that is to use them. The variables are removed from
the environment, so that programs that a handler starts do not use the sockets.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from typing import NamedTuple

from smtpd_fork.errors import UsageError

__all__ = ["UNNAMED", "PassedSocket", "passed_sockets"]

FIRST_FD = 3
"""SD_LISTEN_FDS_START."""

MAX_SOCKETS = 1024
"""Maximum of passed sockets; it is the usual soft limit of RLIMIT_NOFILE."""

UNNAMED = "unknown"
"""The name that sd_listen_fds_with_names(3) gives to a socket without a name."""


class PassedSocket(NamedTuple):
    """A passed descriptor, which may not be a socket."""

    descriptor: int
    name: str


def passed_sockets(environment: MutableMapping[str, str]) -> list[PassedSocket]:
    """Return the passed sockets, in order, and remove the variables from *environment*.

    Sockets for another process are an error here, while sd_listen_fds(3) ignores them: a daemon
    that then binds its default address would seem to work.

    :raises UsageError: a variable is invalid, or a descriptor is not open
    """
    count, pid, names = [environment.pop(name, None) for name in _VARIABLES]
    number = 0 if count is None else _number("LISTEN_FDS", count, MAX_SOCKETS)
    if not number:
        return []
    if pid is None:
        raise UsageError(f"LISTEN_FDS {count!r}: LISTEN_PID is missing")
    if _number("LISTEN_PID", pid, 1 << 31) != os.getpid():
        reason = f"the sockets are not for this process, which is {os.getpid()}"
        raise UsageError(f"LISTEN_PID {pid!r}: {reason}; a wrapper must exec it, or unset both")
    passed = [PassedSocket(FIRST_FD + n, name) for n, name in enumerate(_names(names, number))]
    for descriptor, _ in passed:
        try:
            os.set_inheritable(descriptor, False)
        except OSError:
            raise UsageError(f"LISTEN_FDS {count!r}: descriptor {descriptor} is not open") from None
    return passed


def _names(text: str | None, number: int) -> list[str]:
    names = [UNNAMED] * number if text is None else text.split(":")
    if len(names) != number:
        reason = f"{len(names)} names for {number} descriptors"
        raise UsageError(f"LISTEN_FDNAMES {text!r}: {reason}")
    return names


_VARIABLES = ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")


def _number(name: str, text: str, limit: int) -> int:
    # int() alone would accept signs, spaces, underscores, and digits of other scripts.
    if text.isascii() and text.isdigit() and len(text) <= len(str(limit)) and int(text) <= limit:
        return int(text)
    raise UsageError(f"{name} {text!r}: expected a whole number from 0 to {limit}")
