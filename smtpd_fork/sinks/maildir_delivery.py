"""MaildirDelivery: one message on its way into a Maildir, in the steps that a group takes together.

If it is given up in the middle of them, nothing of it stays in ``new/``.
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
    """Writes one message: :meth:`write`, :meth:`sync`, :meth:`publish`, each by :meth:`proceed`.

    :param maildir: the Maildir
    :param name: of the file, which no other has
    :param head: the trace fields
    :param content: the message below them; lines that end in CR LF will end in LF
    :param binary: whether it is BINARYMIME (RFC 3030), and stays as it came
    :ivar maildir: the Maildir
    :ivar size: of the file, in bytes, once it is written
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
        """Take a step; return whether there is a next one.

        If it fails, or the message was given up, all of it is removed.
        """
        try:
            if self._stored is None:
                step(self)
                return True
        except Exception as error:  # noqa: BLE001 - raised in the session that waits
            self.fail(error)
        else:
            self._close_and_remove()
        return False

    def fail(self, error: Exception) -> None:
        """Give the message up because of *error*, and remove it, unless it is stored already."""
        if self.give_up():
            self.error = error
            self._close_and_remove()

    def write(self) -> None:
        """Write the message to a file in ``tmp/``, which stays open."""
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
        """Tell the kernel to begin writing the file out, without waiting for it."""
        if self._descriptor is not None and hasattr(os, "posix_fadvise"):
            with suppress(OSError):  # advice only: sync() reports errors
                os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def sync(self) -> None:
        """Wait until the file is on the disk."""
        if self._descriptor is not None:
            os.fsync(self._descriptor)
            self._close()

    def publish(self, maildir: OpenMaildir) -> None:
        """Move the file to ``new/``."""
        maildir.publish(self._name)

    def settle(self) -> None:
        """Declare the message, which is in ``new/`` and synced, stored, unless it was given up."""
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
        """Remove what there is of a message that was given up."""
        self.maildir.remove(self._name)
