"""MaildirDelivery: one message on its way into a Maildir, and what decides whether it is there.

A thread writes the message, in a group with others, while the event loop waits for it. Either can
be first: the thread with the message on the disk, or the loop with a time limit that has passed.
The first one decides, once: the message is stored and answered 250, or it is given up, and then
nothing of it stays in ``new/``.
"""

from __future__ import annotations

import logging
import os
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from smtpd_fork.sinks.trace import above

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["MaildirDelivery", "open_directory"]

log = logging.getLogger("smtpd_fork.maildir")

FILE_MODE = 0o600


class MaildirDelivery:
    """Writes one message: :meth:`write`, :meth:`sync`, :meth:`publish`, each by :meth:`proceed`.

    :param maildir: the Maildir
    :param name: of the file, which no other has
    :param head: trace headers, whose lines end in LF
    :param content: the message as it came; its lines will end in LF
    :param binary: whether it is BINARYMIME (RFC 3030), and stays as it came
    :ivar content_size: of *content*, in bytes
    :ivar size: of the file, in bytes, once it is written
    :ivar error: why it could not be stored
    """

    def __init__(
        self, maildir: str, name: str, head: bytes, content: bytes, *, binary: bool = False
    ) -> None:
        self.content_size = len(content)
        self.size = 0
        self.error: Exception | None = None
        # Strings: four Paths take as long as the rest of a message's work in the event loop.
        self._draft = f"{maildir}/tmp/{name}"  # noqa: S108 - of the Maildir
        self._final = f"{maildir}/new/{name}"
        self._head = head
        self._content = content
        self._binary = binary
        self._descriptor: int | None = None
        self._lock = threading.Lock()
        self._stored: bool | None = None

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

    @property
    def stored(self) -> bool:
        """Whether the message is on the disk, and stays there."""
        return self._stored is True

    def write(self) -> None:
        """Write the message to a file in ``tmp/``, which stays open."""
        if self._binary:
            parts = above(self._head.replace(b"\n", b"\r\n"), self._content)
        else:
            parts = above(self._head, self._content.replace(b"\r\n", b"\n"))
        self._content = b""
        self.size = sum(map(len, parts))
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._descriptor = os.open(self._draft, flags, FILE_MODE)
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

    def publish(self) -> None:
        """Move the file to ``new/``."""
        os.rename(self._draft, self._final)  # noqa: PTH104 - see __init__

    def settle(self) -> None:
        """Declare the message, which is in ``new/`` and synced, stored, unless it was given up."""
        if not self._decide(stored=True):
            self.remove()

    def give_up(self) -> bool:
        """Have the message not be stored; return whether that is so, or it is stored already."""
        return not self._decide(stored=False)

    def _decide(self, *, stored: bool) -> bool:
        """Return whether the message is stored: *stored*, unless that was decided before."""
        with self._lock:
            if self._stored is None:
                self._stored = stored
            return self._stored

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _close_and_remove(self) -> None:
        with suppress(OSError):
            self._close()
        self.remove()

    def remove(self) -> None:
        """Remove what there is of a message that was given up.

        May run in two threads, and while a third hangs in a step: the draft goes first, so a
        rename that is still to come fails.
        """
        for path in (self._draft, self._final):
            try:
                os.unlink(path)  # noqa: PTH108 - see __init__
            except FileNotFoundError:
                continue
            except OSError as error:
                log.error(  # noqa: TRY400 - the disk, not us
                    "cannot remove %s, which is not acknowledged: %s", path, error.strerror
                )
                continue
            if path is self._final:
                with suppress(OSError), open_directory(os.path.dirname(path)) as directory:  # noqa: PTH120
                    os.fsync(directory)


@contextmanager
def open_directory(path: str) -> Iterator[int]:
    """Open a directory, to sync it, for a block."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
