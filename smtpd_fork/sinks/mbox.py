"""Mbox: store all messages of a mailbox in one file, which mail(1) and mutt can read.

A message is appended to the locked file and synced; the client gets 250 only after that. After an
error the file is truncated to its old length. A Maildir needs no locks, and is faster.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import stat
from pathlib import Path

from smtpd_fork.errors import CannotCreateError
from smtpd_fork.message import Mail, Replies
from smtpd_fork.safe_open import user_name
from smtpd_fork.setting_types import Count, Seconds
from smtpd_fork.sinks.directories import DIRECTORY_MODE
from smtpd_fork.sinks.final_delivery import (
    FinalSink,
    log_stored,
    storage_reply,
    stored_reply,
    to_each_mailbox,
)
from smtpd_fork.sinks.mailbox_path import MailboxPath
from smtpd_fork.sinks.mbox_delivery import MboxDelivery
from smtpd_fork.sinks.mbox_file import LockedError, MboxFile
from smtpd_fork.sinks.mbox_format import from_line
from smtpd_fork.sinks.mbox_writer import MboxWriter

__all__ = ["Mbox"]

LOCKED = "451 4.2.0 The mailbox is locked, try again later"

REMOVE_SECONDS = 1.0
"""Seconds that the reply 451 after a timeout waits for the removal of the message."""


class Mbox(FinalSink):
    """Appends messages to an mbox file, or to the mbox file of each recipient.

    BINARYMIME is not offered, because the format consists of lines.

    :param path: the file; ``{user}``, ``{domain}`` and ``{ext}`` are replaced by words of the
        recipient's address
    :param lock_timeout: seconds to wait for a file that another program has locked, before its
        recipient gets 451
    :param writers: number of threads that write
    :param delimiter: the delimiter of ``{user}`` and ``{ext}``; empty: there are no extensions
    """

    log = logging.getLogger("smtpd_fork.mbox")

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        lock_timeout: Seconds = 30.0,
        writers: Count = 4,
        delimiter: str = "+",
    ) -> None:
        super().__init__()
        self._location = MailboxPath(path, delimiter=delimiter)
        self._root = self._location.root
        self._names: tuple[str, ...] = ()
        if not self._location.varies:
            self._root, self._names = self._root.parent, (self._root.name,)
        self._lock_seconds = lock_timeout
        self._writers = writers
        self._writer: MboxWriter | None = None

    @property
    def destination(self) -> str:
        """The destination of messages, for the log."""
        return f"the mbox {self._location}"

    def check(self) -> None:
        """Check whether :meth:`prepare` would succeed, without creating anything.

        :raises CannotCreateError: it would fail
        """
        first = self._root
        while not os.path.lexists(first):
            first = first.parent
        if not first.is_dir():
            raise self._error(first, os.strerror(errno.ENOTDIR))
        if not os.access(first, os.W_OK | os.X_OK):
            raise self._error(first, f"user {user_name()} cannot write to it")
        if self._names and os.path.lexists(path := self._root / self._names[0]):
            self._check_file(path)

    def _check_file(self, path: Path) -> None:
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
            raise self._error(path, "expected a regular file without other hard links")
        if not os.access(path, os.R_OK | os.W_OK):
            raise self._error(path, f"user {user_name()} cannot read and write it")

    def _error(self, path: Path, reason: str) -> CannotCreateError:
        return CannotCreateError(f"cannot write to the mbox {self._location}: {reason} ({path})")

    def prepare(self) -> None:
        """Create the directory of the mbox files and of their lock files.

        :raises CannotCreateError: it cannot be created or written to
        """
        try:
            self._root.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror or ""
            raise self._error(Path(error.filename or self._root), reason) from None
        self.check()

    async def close(self) -> None:
        """Wait for the messages that are being written."""
        await super().close()
        writer, self._writer = self._writer, None
        if writer is not None:
            await asyncio.to_thread(writer.close)

    async def deliver_here(self, mail: Mail) -> Replies:
        """Append a message; return when it is on disk."""
        return await to_each_mailbox(mail, self._location, self._store)

    async def _store(
        self, names: tuple[str, ...], head: bytes, content: bytes, mail: Mail, recipients: int
    ) -> str:
        """Append a message to one mbox file, and return the reply."""
        mbox = MboxFile(str(self._root), names or self._names)
        delivery = MboxDelivery(from_line(mail.sender, mail.received), head, content)
        try:
            await self._deliver(mbox, delivery)
        except OSError as error:
            kind = errno.errorcode.get(error.errno or 0, "")
            self.report(mail, "not written", f"{mbox.path}: {error}", kind=kind)
            return LOCKED if isinstance(error, LockedError) else storage_reply(error)
        log_stored(self.log, mail, delivery.size, recipients)
        return stored_reply(mail)

    async def _deliver(self, mbox: MboxFile, delivery: MboxDelivery) -> None:
        """Append a message in a thread; on return it is stored.

        :raises OSError: the message could not be written, and was removed
        :raises asyncio.CancelledError: it was cancelled before the message was stored
        """
        if self._writer is None:
            # Not made earlier, because threads do not survive the fork of a daemon.
            self._writer = MboxWriter(self._writers, self._lock_seconds)
        writer = self._writer
        stored = writer.submit(mbox, delivery)
        try:
            await asyncio.wait({stored})
        except asyncio.CancelledError:
            stored.add_done_callback(_forget)
            if not delivery.give_up():
                return  # the thread was faster: it is stored, and the client has to get 250
            if not writer.withdraw(mbox, delivery):
                await asyncio.wait({stored}, timeout=REMOVE_SECONDS)
            raise
        stored.result()

    def __repr__(self) -> str:
        return f"<Mbox {self._location}>"


def _forget(stored: asyncio.Future[None]) -> None:
    """Retrieve the error of a message that was given up, so that asyncio does not log it."""
    if not stored.cancelled():
        stored.exception()
