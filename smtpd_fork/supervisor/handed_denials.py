"""HandedDenials: the networks denied at run time, handed over to a new process.

They are in memory that both processes share (memfd_create(2)), as an environment variable is too
small for them. The old process writes them before the new one starts, so that they are not lost if
the old one is killed. It writes them again when it hands over the sockets, to include the changes
made meanwhile.
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
    """Writes the denials for a new process. A context manager that closes the descriptor.

    :ivar descriptor: of the shared memory, for the new process to inherit
    :raises OSError: the system has no free memory or file descriptor
    """

    def __init__(self, denials: Denials) -> None:
        self._denials = denials
        self.descriptor = os.memfd_create("smtpd-fork denials")
        try:
            self.write()
        except OSError:
            os.close(self.descriptor)
            raise

    def write(self) -> None:
        """Replace the content by the current denials."""
        # JSON has no infinity: msgspec writes null, and reads None.
        handed = [
            _Handed(each.written, each.text, each.by, each.since, left, each.node)
            for each, left in self._denials.page()
        ]
        data = msgspec.json.encode(handed)
        os.ftruncate(self.descriptor, 0)
        if os.pwrite(self.descriptor, data, 0) < len(data):
            raise OSError("not enough memory for the denials")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)


def receive_denials(descriptor: int, denials: Denials) -> None:
    """Add the denials that the old process has written to *denials*, and close *descriptor*.

    An error is logged only: the new process serves without these denials.
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
