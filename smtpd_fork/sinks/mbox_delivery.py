"""MboxDelivery: a message that is written to an mbox file."""

from __future__ import annotations

import os

from smtpd_fork.sinks.grouped_delivery import GroupedDelivery
from smtpd_fork.sinks.mbox_format import mbox_pieces

__all__ = ["MboxDelivery"]


class MboxDelivery(GroupedDelivery):
    """A message for an mbox file.

    :param first: the line ``From SENDER DATE`` above the message
    :param head: the trace fields
    :param content: the message below them
    :ivar size: size of the written message in bytes
    """

    def __init__(self, first: bytes, head: bytes, content: bytes) -> None:
        super().__init__(len(content))
        self.size = 0
        self._parts = first, head, content

    def write(self, file: int, separator: bytes) -> int:
        """Write the message; return the number of bytes.

        :param separator: bytes to write before the message
        """
        pieces = mbox_pieces(*self._parts)
        self.size = _write(file, separator + next(pieces))
        for piece in pieces:
            self.size += _write(file, piece)
        return self.size

    def fail(self, error: Exception) -> None:
        """Give the message up with *error*, unless it is stored already."""
        if self.give_up():
            self.error = error


def _write(file: int, piece: bytes) -> int:
    left = memoryview(piece)
    while left:
        left = left[os.write(file, left) :]
    return len(piece)
