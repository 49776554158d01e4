"""The word to a service manager: sd_notify(3) and sd_watchdog_enabled(3), without a library.

A message is lines of ``NAME=VALUE`` in one datagram to the socket that ``NOTIFY_SOCKET`` names.
It is sent without waiting: a manager that does not read must not hold up the mail.
"""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING, Self

from smtpd_fork.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

__all__ = ["Notifier", "monotonic_usec"]

MAX_ADDRESS = 107
"""Bytes in sockaddr_un.sun_path, without its final NUL: unix(7)."""

MAX_WATCHDOG_USEC = 10**18
"""Thirty thousand years: a figure, and not an attempt at the memory."""

_USEC = 1_000_000


class Notifier:
    """Tells whoever started this process how it is.

    :ivar watchdog: after so many seconds without ``WATCHDOG=1`` the manager takes it for hung;
        None if nobody watches
    """

    def __init__(self, address: str, watchdog: float | None = None) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._main = os.getpid()
        self.watchdog = watchdog

    @classmethod
    def of_environment(cls, environment: MutableMapping[str, str]) -> Self | None:
        """Return the one that the environment names, or None if it names none.

        The variables are taken out of it: what a handler starts has no word to say here.

        :raises UsageError: a variable cannot be read
        """
        address = environment.pop("NOTIFY_SOCKET", None)
        seconds = _watchdog(
            environment.pop("WATCHDOG_USEC", None), environment.pop("WATCHDOG_PID", None)
        )
        if not address:
            return None
        if address[0] not in "/@" or len(address) < 2:  # noqa: PLR2004 - a mark, and a name
            raise UsageError(f"NOTIFY_SOCKET {address!r}: expected an absolute path, or @NAME")
        if len(os.fsencode(address)) > MAX_ADDRESS or "\0" in address:
            raise UsageError(f"NOTIFY_SOCKET {address!r}: too long for a unix socket")
        return cls(address, seconds)

    @property
    def main_pid(self) -> Mapping[str, object]:
        """``MAINPID``, if this is no longer the process that was started (it was detached)."""
        pid = os.getpid()
        return {} if pid == self._main else {"MAINPID": pid}

    def send(self, fields: Mapping[str, object]) -> None:
        """Send one message.

        :param fields: names and values; a value is one line
        :raises BlockingIOError: the manager has not read what it was told before
        :raises OSError: it is not there
        """
        lines = [f"{name}={' '.join(str(value).split())}" for name, value in fields.items()]
        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        with socket.socket(socket.AF_UNIX, kind) as sock:
            sock.sendto("\n".join(lines).encode(), self._address)


def monotonic_usec() -> int:
    """Return the time as ``MONOTONIC_USEC`` wants it: CLOCK_MONOTONIC, in microseconds."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


def _watchdog(usec: str | None, pid: str | None) -> float | None:
    if usec is None:
        return None
    for name, text in (("WATCHDOG_USEC", usec), ("WATCHDOG_PID", pid or "0")):
        if not (text.isascii() and text.isdigit() and len(text) <= len(str(MAX_WATCHDOG_USEC))):
            raise UsageError(f"{name} {text!r}: expected a whole number")
    if not 0 < int(usec) <= MAX_WATCHDOG_USEC:
        raise UsageError(f"WATCHDOG_USEC {usec!r}: expected a time of more than 0")
    if pid is not None and int(pid) != os.getpid():
        return None  # it is another process that is watched: sd_watchdog_enabled(3)
    return int(usec) / _USEC
