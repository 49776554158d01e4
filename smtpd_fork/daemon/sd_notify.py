"""A client for sd_notify(3) and sd_watchdog_enabled(3).

A message consists of lines ``NAME=VALUE`` in one datagram to the socket that ``NOTIFY_SOCKET``
names. It is sent without blocking: a service manager that does not read must not delay mail. The
existing libraries need a compiler or are not maintained, and block, while the protocol is simple.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, MutableMapping
from typing import Self

from smtpd_fork.errors import UsageError

__all__ = ["Notifier", "monotonic_usec"]

MAX_ADDRESS = 107
"""Bytes in sockaddr_un.sun_path, without its final NUL: unix(7)."""

MAX_WATCHDOG_USEC = 10**18
"""About 30,000 years; larger numbers are refused before they are parsed."""

_USEC = 1_000_000


class Notifier:
    """Sends messages to the service manager.

    :ivar watchdog: seconds without ``WATCHDOG=1`` after which the manager considers the daemon
        hung; None without a watchdog
    """

    def __init__(self, address: str, watchdog: float | None = None) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._main = os.getpid()
        self.watchdog = watchdog

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str]) -> Self | None:
        """Return a notifier for the variables in *environment*; None without a service manager.

        The variables are removed, so that programs that a handler starts cannot send messages as
        if they were the daemon.

        :raises UsageError: a variable is invalid
        """
        address = environment.pop("NOTIFY_SOCKET", None)
        seconds = _watchdog(
            environment.pop("WATCHDOG_USEC", None), environment.pop("WATCHDOG_PID", None)
        )
        if not address:
            return None
        if address[0] not in "/@" or len(address) < 2:  # noqa: PLR2004 - / or @, and a name
            raise UsageError(f"NOTIFY_SOCKET {address!r}: expected an absolute path, or @NAME")
        if len(os.fsencode(address)) > MAX_ADDRESS or "\0" in address:
            raise UsageError(f"NOTIFY_SOCKET {address!r}: too long for a unix socket")
        return cls(address, seconds)

    @property
    def main_pid(self) -> Mapping[str, object]:
        """The field ``MAINPID``, if this process is not the one that was started (it detached)."""
        pid = os.getpid()
        return {} if pid == self._main else {"MAINPID": pid}

    def send(self, fields: Mapping[str, object]) -> None:
        """Send one message.

        :param fields: names and values; line ends in a value become spaces
        :raises BlockingIOError: the manager has not read earlier messages
        :raises OSError: the manager does not listen
        """
        lines = [f"{name}={' '.join(str(value).split())}" for name, value in fields.items()]
        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        with socket.socket(socket.AF_UNIX, kind) as sock:
            sock.sendto("\n".join(lines).encode(), self._address)


def monotonic_usec() -> int:
    """Return the time for ``MONOTONIC_USEC``: CLOCK_MONOTONIC, in microseconds."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


def _watchdog(usec: str | None, pid: str | None) -> float | None:
    if usec is None:
        return None
    for name, text in (("WATCHDOG_USEC", usec), ("WATCHDOG_PID", pid or "0")):
        if not (text.isascii() and text.isdigit() and len(text) <= len(str(MAX_WATCHDOG_USEC))):
            raise UsageError(f"{name} {text!r}: expected a whole number")
    if not 0 < int(usec) <= MAX_WATCHDOG_USEC:
        raise UsageError(f"WATCHDOG_USEC {usec!r}: expected a number greater than 0")
    if pid is not None and int(pid) != os.getpid():
        return None  # the watchdog is for another process: sd_watchdog_enabled(3)
    return int(usec) / _USEC
