"""Maildir: store each message in a file of its own.

A message is written to ``tmp/``, synced and renamed into ``new/``, and the directory is synced; the
client gets 250 only after that. After 250 the message is in ``new/`` exactly once. After any other
reply it is not there; at most a file in ``tmp/`` remains, which is removed when it is old. The
message is also stored if the client has disconnected before the reply, because some clients never
wait for it.

The format is that of maildir(5). Lines end in LF, as mail readers on Unix expect. BINARYMIME does
not consist of lines, and is stored unchanged.

There is one Maildir for all recipients, or, with words in the path, one for each recipient; then a
message is stored as a file in the Maildir of each of its recipients.

fsync(2) takes milliseconds and would block all other sessions, so threads write the messages, in
groups (:mod:`smtpd_fork.sinks.maildir_writer`).
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import os
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from aiosmtpd.smtp import MISSING

from smtpd_fork.errors import CannotCreateError
from smtpd_fork.message import Mail, Replies
from smtpd_fork.safe_open import user_name
from smtpd_fork.setting_types import Count, FilePath
from smtpd_fork.sinks.directories import DIRECTORY_MODE
from smtpd_fork.sinks.final_delivery import (
    NO_MAILBOX,
    FinalSink,
    log_stored,
    storage_reply,
    stored_reply,
    to_each_mailbox,
)
from smtpd_fork.sinks.mailbox_path import MailboxPath
from smtpd_fork.sinks.maildir_delivery import MaildirDelivery
from smtpd_fork.sinks.maildir_directory import (
    MaildirDirectory,
    NoMailboxError,
    RecipientMaildir,
    remove_stale,
)
from smtpd_fork.sinks.maildir_writer import THREADS, MaildirWriter

__all__ = ["Maildir"]

_NOT_OURS = {errno.EACCES, errno.EPERM}

REMOVE_SECONDS = 1.0
"""Seconds that the reply 451 after a timeout waits for the removal of the message."""

CLEAN_SECONDS = 3600.0
"""Seconds between two searches for stale files."""

CLEAN_MAILDIRS = 10_000
"""Maximum Maildirs for which the time of the last search is remembered."""

LOOKUP_THREADS = 4
"""Threads that check whether the Maildir of a recipient exists."""

_numbers = itertools.count(1)


class Maildir(FinalSink):
    """Writes messages to a Maildir, or to the Maildir of each recipient.

    :param path: the Maildir; ``{user}``, ``{domain}`` and ``{ext}`` are replaced by words of the
        recipient's address
    :param writers: number of threads that write
    :param delimiter: the delimiter of ``{user}`` and ``{ext}``; empty: there are no extensions
    :param create: whether a missing Maildir is created, with its parents; otherwise its recipients
        get 550
    """

    supports_binarymime = True
    log = logging.getLogger("smtpd_fork.maildir")

    def __init__(
        self,
        path: FilePath | os.PathLike[str] = "./Maildir",
        *,
        writers: Count = THREADS,
        delimiter: str = "+",
        create: bool = True,
    ) -> None:
        super().__init__()
        self._location = MailboxPath(path, delimiter=delimiter)
        self.path = self._location.root
        self._wanted = [] if self._location.varies else ["tmp", "new", "cur"]
        self._noun = "directory of Maildirs" if self._location.varies else "Maildir"
        self._create = create
        self._maildir = MaildirDirectory(str(self.path))
        self._writers = writers
        self._writer: MaildirWriter | None = None
        self._remover: ThreadPoolExecutor | None = None
        self._lookup: ThreadPoolExecutor | None = None
        self._clean_at: dict[str, float] = {}
        # File names must not contain "/" or ":" (maildir(5)).
        self._host = re.sub(r"[^A-Za-z0-9.-]", "_", socket.gethostname())
        if self._location.varies and not create:
            self.handle_RCPT = self._refuse_unknown

    @property
    def destination(self) -> str:
        """The destination of messages, for the log."""
        return f"the Maildir {self._location}"

    def check(self) -> None:
        """Check whether :meth:`prepare` would succeed, without creating anything.

        :raises CannotCreateError: it would fail
        """
        first = self.path
        while not os.path.lexists(first):
            first = first.parent
        if not first.is_dir():
            number = errno.EEXIST if first == self.path else errno.ENOTDIR
            raise self._create_error(number, self.path)
        wanted = [self.path, *(self.path / name for name in self._wanted)]
        missing = [path for path in wanted if not os.access(path, os.F_OK)]
        if missing and not self._create:
            raise self._missing_error(missing[0])
        if missing and not os.access(first, os.W_OK | os.X_OK):
            made = [*reversed(self.path.parents), *missing]
            first_missing = next(path for path in made if not os.access(path, os.F_OK))
            raise self._create_error(errno.EACCES, first_missing)
        self._check_writable()

    def _missing_error(self, path: object) -> CannotCreateError:
        return CannotCreateError(f"the {self._noun} {self.path} does not exist ({path}): create=no")

    def _create_error(self, number: int, path: object) -> CannotCreateError:
        reason = f"{os.strerror(number)} ({path})"
        if number in _NOT_OURS:
            reason += self._owner_advice()
        return CannotCreateError(
            f"the {self._noun} {self.path} cannot be created by user {user_name()}: {reason}"
        )

    def _check_writable(self) -> None:
        used = [self.path / name for name in self._wanted if name != "cur"]
        if self._location.varies and self._create:
            used = [self.path]
        for path in used:
            if os.access(path, os.F_OK) and not os.access(path, os.W_OK | os.X_OK):
                reason = f"user {user_name()} has no permission ({path}){self._owner_advice()}"
                raise CannotCreateError(f"cannot write to the {self._noun} {self.path}: {reason}")

    def prepare(self) -> None:
        """Create missing directories, and remove stale files from ``tmp/``.

        :raises CannotCreateError: the directories cannot be created or written to
        """
        if not self._create:
            self.check()
        try:
            self.path.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
            for name in self._wanted:
                (self.path / name).mkdir(mode=DIRECTORY_MODE, exist_ok=True)
        except OSError as error:
            raise self._create_error(error.errno or 0, error.filename) from None
        self._check_writable()
        if not self._location.varies:
            remove_stale(self._maildir)
            self._clean_at[self._maildir.path] = time.monotonic() + CLEAN_SECONDS

    def _owner_advice(self) -> str:
        """Return a text with the command that makes this user the owner of the Maildir."""
        uid, gid = os.geteuid(), os.getegid()
        if os.access(self.path, os.F_OK):
            return f"; give it to the user of this process: chown -R {uid}:{gid} {self.path}"
        return f"; create it as root: install -d -m 0700 -o {uid} -g {gid} {self.path}"

    async def close(self) -> None:
        """Wait for the messages that are being written."""
        await super().close()
        writer, remover, lookup = self._writer, self._remover, self._lookup
        self._writer = self._remover = self._lookup = None
        if writer is not None and remover is not None:
            await asyncio.to_thread(writer.close)
            await asyncio.to_thread(remover.shutdown)
        if lookup is not None:
            await asyncio.to_thread(lookup.shutdown)

    async def _refuse_unknown(
        self, server: Any, session: Any, envelope: Any, address: str, options: list[str]
    ) -> Any:
        """Refuse a recipient whose Maildir does not exist; used as ``handle_RCPT``."""
        if self._lookup is None:
            self._lookup = ThreadPoolExecutor(LOOKUP_THREADS, thread_name_prefix="maildir-lookup")
        loop = asyncio.get_running_loop()
        maildir = self._recipient_maildir(self._location.names(address))
        try:
            found = await loop.run_in_executor(self._lookup, maildir.exists)
        except (OSError, RuntimeError) as error:  # RuntimeError: no thread can be started
            self.log.error("[%s] recipient not looked up: %s", getattr(session, "id", ""), error)  # noqa: TRY400 - an error of the disk
            return "451 4.3.0 The mailbox could not be looked up, try again later"
        return MISSING if found else NO_MAILBOX

    def _recipient_maildir(self, names: tuple[str, ...]) -> RecipientMaildir:
        return RecipientMaildir(
            str(self.path),
            names,
            create=self._create,
            optional=not self._create and self._location.ends_with_extension(names),
        )

    async def deliver_here(self, mail: Mail) -> Replies:
        """Write a message; return when it is on disk."""
        return await to_each_mailbox(mail, self._location, self._store)

    async def _store(
        self, names: tuple[str, ...], head: bytes, content: bytes, mail: Mail, recipients: int
    ) -> str:
        """Write a message to one Maildir, and return the reply."""
        maildir = self._recipient_maildir(names) if names else self._maildir
        delivery = MaildirDelivery(
            *(maildir, self._unique_name(), head, content), binary=mail.binary
        )
        try:
            await self._deliver(delivery)
        except NoMailboxError:
            return NO_MAILBOX
        except OSError as error:
            reason = f"{maildir.path}: {error}" if self._location.varies else str(error)
            kind = errno.errorcode.get(error.errno or 0, "")
            self.report(mail, "not written", reason, kind=kind)
            return storage_reply(error)
        log_stored(self.log, mail, delivery.size, recipients)
        return stored_reply(mail)

    async def _deliver(self, delivery: MaildirDelivery) -> None:
        """Write a message in a thread; on return it is stored.

        :raises OSError: the message could not be written, and was removed
        :raises asyncio.CancelledError: it was cancelled before the message was stored; the message
            was removed
        """
        writer, remover = self._threads(delivery.maildir)
        stored = writer.submit(delivery)
        try:
            await stored
        except asyncio.CancelledError:
            if not delivery.give_up():
                return  # the thread was faster: it is stored, and the client has to get 250
            if stored.done() and not stored.cancelled():
                stored.exception()  # mark the exception as retrieved
            if writer.withdraw(delivery):
                raise  # nothing was written
            # If no thread can be started, the thread that writes the message removes it.
            with suppress(RuntimeError):
                removed = asyncio.wrap_future(remover.submit(delivery.remove))
                await asyncio.wait({removed}, timeout=REMOVE_SECONDS)
            raise

    def _threads(self, maildir: MaildirDirectory) -> tuple[MaildirWriter, ThreadPoolExecutor]:
        """Return the threads that write and remove; have the latter remove stale files hourly."""
        if self._writer is None or self._remover is None:
            # Not made earlier, because threads do not survive the fork of a daemon.
            self._writer = MaildirWriter(self._writers)
            self._remover = ThreadPoolExecutor(1, thread_name_prefix="maildir-removing")
        now = time.monotonic()
        if now >= self._clean_at.get(maildir.path, 0.0):
            if len(self._clean_at) >= CLEAN_MAILDIRS:
                self._clean_at.clear()
            self._clean_at[maildir.path] = now + CLEAN_SECONDS
            with suppress(RuntimeError):  # no thread can be started
                self._remover.submit(remove_stale, maildir)
        return self._writer, self._remover

    def _unique_name(self) -> str:
        """Return a unique file name: time, process ID, number, host."""
        now = time.time_ns()
        seconds, microseconds = divmod(now // 1000, 1_000_000)
        return f"{seconds}.M{microseconds:06}P{os.getpid()}Q{next(_numbers)}.{self._host}"

    def __repr__(self) -> str:
        return f"<Maildir {self._location}>"
