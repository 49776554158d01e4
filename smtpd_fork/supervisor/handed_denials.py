"""HandedDenials: networks that are denied at run time, handed over in an upgrade.

They are in memory that both processes share (memfd_create(2)): an environment variable has no room
for them. The old process writes them before the new one starts, so that they are there if it is
killed, and again when it lets go, with those that were added or removed meanwhile.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Self

import msgspec

from smtpd_fork.errors import SmtpdForkError

if TYPE_CHECKING:
    from smtpd_fork.gate import Denials

__all__ = ["HandedDenials", "receive_denials"]

log = logging.getLogger("smtpd_fork.daemon")


class _Handed(msgspec.Struct, array_like=True):
    network: str
    text: str
    by: str
    since: float
    seconds: float | None
    node: str = ""


class HandedDenials:
    """The old process's end; a context manager that closes it.

    :ivar descriptor: is inherited by the new process
    :raises OSError: the system has no memory or no descriptor
    """

    def __init__(self, denials: Denials) -> None:
        self._denials = denials
        self.descriptor = os.memfd_create("smtpd-fork denials")
        self.write()

    def write(self) -> None:
        """Write the denials as they are now, in place of those before."""
        # An infinite time is null in JSON.
        handed = [
            _Handed(each.written, each.text, each.by, each.since, left, each.node)
            for each, left in self._denials.page()
        ]
        data = msgspec.json.encode(handed)
        os.ftruncate(self.descriptor, 0)
        if os.pwrite(self.descriptor, data, 0) < len(data):
            raise OSError("too little memory for the denials")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)


def receive_denials(descriptor: int, denials: Denials) -> None:
    """Add what the old process has written to *denials*, and close *descriptor*.

    What cannot be read is logged: the new process serves all the same.
    """
    try:
        data = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
        for each in msgspec.json.decode(data, type=list[_Handed]):
            denials.add(
                each.network,
                each.text,
                seconds=each.seconds,
                by=each.by,
                since=each.since,
                node=each.node,
            )
    except (OSError, msgspec.MsgspecError, UnicodeError, SmtpdForkError) as error:
        log.error("cannot read the networks denied at run time from the old process: %s", error)  # noqa: TRY400 - one line
    finally:
        os.close(descriptor)
