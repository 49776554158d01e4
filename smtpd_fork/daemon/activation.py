"""Socket activation: which descriptors whoever started this process left to it, sd_listen_fds(3).

``LISTEN_FDS`` says how many, from 3 on; ``LISTEN_FDNAMES`` what each is called; ``LISTEN_PID`` for
whom they are. The variables are taken out of the environment: what a handler starts is somebody
else, and must not take them for its own.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from smtpd_fork.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import MutableMapping

__all__ = ["UNNAMED", "PassedSocket", "passed_sockets"]

FIRST = 3
"""SD_LISTEN_FDS_START."""

MOST = 1024
"""Sockets of one service; RLIMIT_NOFILE's usual soft limit, and far more than anybody has."""

UNNAMED = "unknown"
"""What sd_listen_fds_with_names(3) calls a socket without a name."""


class PassedSocket(NamedTuple):
    """One descriptor that was passed; whether it is a socket is not known yet."""

    descriptor: int
    name: str


def passed_sockets(environment: MutableMapping[str, str]) -> list[PassedSocket]:
    """Return what was passed, in order, and forget that it was; nothing is no error.

    What sd_listen_fds(3) passes over in silence is an error here: sockets that are meant for
    another process. A daemon that then bound its default address would look as if all were well.

    :param environment: the process's; the variables are removed from it, come what may
    :raises UsageError: the variables cannot be read, or a descriptor is not open
    """
    taken = {name: environment.pop(name, None) for name in _VARIABLES}
    count, pid, names = (taken[name] for name in _VARIABLES)
    if count is None:
        return []
    many = _number("LISTEN_FDS", count, MOST)
    if not many:
        return []
    if pid is None:
        raise UsageError(f"LISTEN_FDS {count!r}: there is no LISTEN_PID that says for whom")
    if _number("LISTEN_PID", pid, 1 << 31) != os.getpid():
        reason = f"the sockets are not for this process, which is {os.getpid()}"
        raise UsageError(f"LISTEN_PID {pid!r}: {reason}; a wrapper has to exec it, or unset them")
    called = [UNNAMED] * many if names is None else names.split(":")
    if len(called) != many:
        reason = f"{len(called)} names, and LISTEN_FDS says {many}"
        raise UsageError(f"LISTEN_FDNAMES {names!r}: {reason}")
    passed = [PassedSocket(FIRST + index, name) for index, name in enumerate(called)]
    for descriptor, _ in passed:
        try:
            os.set_inheritable(descriptor, False)
        except OSError:
            raise UsageError(f"LISTEN_FDS {count!r}: descriptor {descriptor} is not open") from None
    return passed


_VARIABLES = ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")


def _number(name: str, text: str, most: int) -> int:
    # Not int() alone: it takes signs, spaces, underscores, and digits of other scripts.
    if text.isascii() and text.isdigit() and len(text) <= len(str(most)) and int(text) <= most:
        return int(text)
    raise UsageError(f"{name} {text!r}: expected a whole number from 0 to {most}")
