"""MaildirDelivery: store a message in a Maildir, in steps that a group of messages does together.

A message that is given up between two steps does not stay in ``new/``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from smtpd_fork.message import unix_lines
from smtpd_fork.sinks.grouped_delivery import GroupedDelivery

if TYPE_CHECKING:
    from smtpd_fork.sinks.maildir_directory import MaildirDirectory, OpenMaildir

__all__ = ["MaildirDelivery"]


class MaildirDelivery(GroupedDelivery):
    """Stores a message. :meth:`proceed` calls each of :meth:`write`, :meth:`sync`, :meth:`publish`.

    :param maildir: the Maildir
    :param name: the unique name of the file
    :param head: the trace fields
    :param content: the message below them; CR LF is converted to LF
    :param binary: whether the message is BINARYMIME (RFC 3030), and is not converted
    :ivar maildir: the Maildir
    :ivar size: size of the written file in bytes
    """

    def __init__(
        self,
        maildir: MaildirDirectory,
        name: str,
        head: bytes,
        content: bytes,
        *,
        binary: bool = False,
    ) -> None:
        super().__init__(len(content))
        self.maildir = maildir
        self.size = 0
        self._name = name
        self._head = head
        self._content = content
        self._binary = binary
        self._descriptor: int | None = None

    def proceed(self, step: Callable[[MaildirDelivery], None]) -> bool:
        """Call a step; return whether the next one may follow.

        If the step fails, or the message was given up, the message is removed.
        """
        try:
            if self._stored is None:
                step(self)
                return True
        except Exception as error:  # noqa: BLE001 - raised in the waiting session
            self.fail(error)
        else:
            self._close_and_remove()
        return False

    def fail(self, error: Exception) -> None:
        """Give the message up with *error* and remove it, unless it is stored already."""
        if self.give_up():
            self.error = error
            self._close_and_remove()

    def write(self) -> None:
        """Write the message to a file in ``tmp/``; the file stays open."""
        head, pieces = self._head, iter((self._content,))
        if not self._binary:
            head, pieces = head.replace(b"\r\n", b"\n"), unix_lines(self._content)
        self._content = b""
        self._descriptor = self.maildir.create(self._name)
        self._write(head, next(pieces))
        for piece in pieces:
            self._write(piece)

    def _write(self, *parts: bytes) -> None:
        assert self._descriptor is not None
        self.size += sum(map(len, parts))
        left = [memoryview(part) for part in parts]
        while left:
            count = os.writev(self._descriptor, left)
            while left and count >= len(left[0]):
                count -= len(left.pop(0))
            if left:
                left[0] = left[0][count:]

    def begin_sync(self) -> None:
        """Have the kernel begin to write the file to disk, without waiting for it."""
        if self._descriptor is not None and hasattr(os, "posix_fadvise"):
            with suppress(OSError):  # only an advice; sync() reports errors
                os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def sync(self) -> None:
        """Wait until the file is on disk."""
        if self._descriptor is not None:
            os.fsync(self._descriptor)
            self._close()

    def publish(self, maildir: OpenMaildir) -> None:
        """Move the file to ``new/``."""
        maildir.publish(self._name)

    def mark_stored(self) -> None:
        """Mark the message, synced in ``new/``, as stored; remove it if it was given up."""
        if not self.decide(stored=True):
            self.maildir.remove(self._name)

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _close_and_remove(self) -> None:
        with suppress(OSError):
            self._close()
        self.remove()

    def remove(self) -> None:
        """Remove the files of a message that was given up."""
        self.maildir.remove(self._name)
