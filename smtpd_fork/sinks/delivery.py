"""Delivery: one message on its way into a Maildir, and what decides whether it is there.

A thread writes the message while the event loop waits for it. Either can be first: the thread with
the message on the disk, or the loop with a time limit that has passed. The first one decides, once:
the message is stored and answered 250, or it is given up, and then nothing of it stays in ``new/``.
"""

from __future__ import annotations

import logging
import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from smtpd_fork.sinks.trace import above

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["Delivery"]

log = logging.getLogger("smtpd_fork.maildir")

FILE_MODE = 0o600


class Delivery:
    """Writes one message.

    :param maildir: the Maildir
    :param name: of the file, which no other has
    :param head: trace headers, whose lines end in LF
    :param content: the message as it came; its lines will end in LF
    :param binary: whether it is BINARYMIME (RFC 3030), and stays as it came
    :ivar size: of the file, in bytes, once it is written
    """

    def __init__(
        self, maildir: Path, name: str, head: bytes, content: bytes, *, binary: bool = False
    ) -> None:
        self.size = 0
        self._draft = maildir / "tmp" / name
        self._final = maildir / "new" / name
        self._head = head
        self._content = content
        self._binary = binary
        self._lock = threading.Lock()
        self._stored: bool | None = None

    def write(self) -> None:
        """Write the message, in a thread; on return it is stored, or was given up and is removed.

        :raises OSError: it could not be written, and is removed
        """
        if self._binary:
            parts = above(self._head.replace(b"\n", b"\r\n"), self._content)
        else:
            parts = above(self._head, self._content.replace(b"\r\n", b"\n"))
        self.size = sum(map(len, parts))
        descriptor = _create(self._draft)
        try:
            _write_and_close(descriptor, parts)
            if self._stored is None:
                self._draft.rename(self._final)
                _sync_directory(self._final.parent)
        except BaseException:
            self._decide(stored=False)
            self.remove()
            raise
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

    def remove(self) -> None:
        """Remove what there is of a message that was given up.

        May run in two threads, and while a third hangs in :meth:`write`: the draft goes first, so a
        rename that is still to come fails.
        """
        for path in (self._draft, self._final):
            try:
                path.unlink()
            except FileNotFoundError:
                continue
            except OSError as error:
                log.error(  # noqa: TRY400 - the disk, not us
                    "cannot remove %s, which is not acknowledged: %s", path, error.strerror
                )
                continue
            if path is self._final:
                with suppress(OSError):
                    _sync_directory(path.parent)


def _create(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)


def _write_and_close(descriptor: int, parts: Iterable[bytes]) -> None:
    try:
        for part in parts:
            left = memoryview(part)
            while left:
                left = left[os.write(descriptor, left) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
