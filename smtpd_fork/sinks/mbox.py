"""Mbox: all messages of a mailbox in one file, as mail(1) and mutt read it.

A message is appended while the file is locked, and synced; only then is it answered 250. If that
fails, the file is cut back to its old length. A Maildir needs no locks, and is faster.
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
    note_stored,
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
"""How long the answer 451 to a message that took too long waits until nothing of it is left."""


class Mbox(FinalSink):
    """Appends messages to an mbox file, or to the one of each recipient.

    BINARYMIME is not offered: the format is made of lines.

    :param path: the file; ``{user}``, ``{domain}`` and ``{ext}`` in it stand for the recipient's
    :param lock_timeout: seconds to wait for a file that another program has locked; then its
        recipient gets 451
    :param writers: how many threads write
    :param delimiter: between ``{user}`` and ``{ext}``; empty: addresses have no extensions
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
        """Where messages go, for the log."""
        return f"the mbox {self._location}"

    def check(self) -> None:
        """See whether :meth:`prepare` would succeed; nothing is made.

        :raises CannotCreateError: it would not
        """
        first = self._root
        while not os.path.lexists(first):
            first = first.parent
        if not first.is_dir():
            raise self._fault(first, os.strerror(errno.ENOTDIR))
        if not os.access(first, os.W_OK | os.X_OK):
            raise self._fault(first, f"user {user_name()} cannot write to it")
        if self._names and os.path.lexists(path := self._root / self._names[0]):
            self._check_file(path)

    def _check_file(self, path: Path) -> None:
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
            raise self._fault(path, "expected a file with one name, and no link")
        if not os.access(path, os.R_OK | os.W_OK):
            raise self._fault(path, f"user {user_name()} cannot read and write it")

    def _fault(self, path: Path, reason: str) -> CannotCreateError:
        return CannotCreateError(f"cannot write to the mbox {self._location}: {reason} ({path})")

    def prepare(self) -> None:
        """Make the directory, in which the lock files are as well.

        :raises CannotCreateError: it cannot be made or written to
        """
        try:
            self._root.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror or ""
            raise self._fault(Path(error.filename or self._root), reason) from None
        self.check()

    async def close(self) -> None:
        """Wait for the messages that are being written."""
        await super().close()
        writer, self._writer = self._writer, None
        if writer is not None:
            await asyncio.to_thread(writer.close)

    async def deliver_here(self, mail: Mail) -> Replies:
        """Append a message, and answer once it is on the disk."""
        return await to_each_mailbox(mail, self._location, self._store)

    async def _store(
        self, names: tuple[str, ...], head: bytes, content: bytes, mail: Mail, recipients: int
    ) -> str:
        """Append a message to one file, and return the reply."""
        mbox = MboxFile(str(self._root), names or self._names)
        delivery = MboxDelivery(from_line(mail.sender, mail.received), head, content)
        try:
            await self._deliver(mbox, delivery)
        except OSError as error:
            kind = errno.errorcode.get(error.errno or 0, "")
            self.report(mail, "not written", f"{mbox.path}: {error}", kind=kind)
            return LOCKED if isinstance(error, LockedError) else storage_reply(error)
        note_stored(self.log, mail, delivery.size, recipients)
        return stored_reply(mail)

    async def _deliver(self, mbox: MboxFile, delivery: MboxDelivery) -> None:
        """Have a message written; on return it is stored.

        :raises OSError: it could not be written, and is removed
        :raises asyncio.CancelledError: it was given up before it was stored
        """
        if self._writer is None:
            # Made late: threads do not survive the daemon's fork.
            self._writer = MboxWriter(self._writers, self._lock_seconds)
        writer = self._writer
        stored = writer.hand_over(mbox, delivery)
        try:
            await asyncio.wait({stored})
        except asyncio.CancelledError:
            stored.add_done_callback(_forget)
            if not delivery.give_up():
                return  # the thread was first: it is stored, and the client has to know
            if not writer.withdraw(mbox, delivery):
                await asyncio.wait({stored}, timeout=REMOVE_SECONDS)
            raise
        stored.result()

    def __repr__(self) -> str:
        return f"<Mbox {self._location}>"


def _forget(stored: asyncio.Future[None]) -> None:
    """Take note of the error of a message that was given up: nobody else asks."""
    if not stored.cancelled():
        stored.exception()
