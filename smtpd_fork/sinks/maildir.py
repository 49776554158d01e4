"""Maildir: one file a message, whole or not at all.

A message is written to ``tmp/``, synced, renamed into ``new/``, and the directory synced; only
then is it answered 250. After 250 it is in ``new/``, once. After any other answer it is not there,
and at most a file in ``tmp/`` is left, which is removed when it is old. The message of a client
that is gone before its answer is stored: some clients never wait for answers.

The format is maildir(5)'s. Lines end in LF as mail readers on Unix expect; BINARYMIME is not made
of lines, and is stored as it came.

The Maildir is one for all recipients, or, with words in its path, one for each of them: then a
message to several recipients is a file in the Maildir of each.

fsync(2) takes milliseconds and would stop every other session: threads write the messages, in
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
    note_stored,
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
"""How long the answer 451 to a message that took too long waits until nothing of it is left."""

CLEAN_SECONDS = 3600.0
"""Time between two looks for stale files."""

CLEAN_MAILDIRS = 10_000
"""Maildirs whose last look is remembered."""

LOOKUP_THREADS = 4
"""Threads that see whether the Maildir of a recipient exists."""

_numbers = itertools.count(1)


class Maildir(FinalSink):
    """Writes messages to a Maildir, or to the Maildir of each recipient.

    :param path: the Maildir; ``{user}``, ``{domain}`` and ``{ext}`` in it stand for the recipient's
    :param writers: how many threads write
    :param delimiter: between ``{user}`` and ``{ext}``; empty: addresses have no extensions
    :param create: whether a Maildir that does not exist is made, with its parents; otherwise its
        recipient gets 550
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
        self._removing: ThreadPoolExecutor | None = None
        self._lookup: ThreadPoolExecutor | None = None
        self._clean_at: dict[str, float] = {}
        # As maildir(5) wants it: no "/" and no ":" in a file's name.
        self._host = re.sub(r"[^A-Za-z0-9.-]", "_", socket.gethostname())
        if self._location.varies and not create:
            self.handle_RCPT = self._refuse_unknown

    @property
    def destination(self) -> str:
        """Where messages go, for the log."""
        return f"the Maildir {self._location}"

    def check(self) -> None:
        """See whether :meth:`prepare` would succeed; nothing is made.

        :raises CannotCreateError: it would not
        """
        first = self.path
        while not os.path.lexists(first):
            first = first.parent
        if not first.is_dir():
            number = errno.EEXIST if first == self.path else errno.ENOTDIR
            raise self._not_made(number, self.path)
        wanted = [self.path, *(self.path / name for name in self._wanted)]
        missing = [path for path in wanted if not os.access(path, os.F_OK)]
        if missing and not self._create:
            raise self._not_there(missing[0])
        if missing and not os.access(first, os.W_OK | os.X_OK):
            made = [*reversed(self.path.parents), *missing]
            raise self._not_made(errno.EACCES, next(p for p in made if not os.access(p, os.F_OK)))
        self._check_writable()

    def _not_there(self, path: object) -> CannotCreateError:
        return CannotCreateError(f"the {self._noun} {self.path} does not exist ({path}): create=no")

    def _not_made(self, number: int, path: object) -> CannotCreateError:
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
        """Make the directories that are not there; remove stale files from ``tmp/``.

        :raises CannotCreateError: they cannot be created or written to
        """
        if not self._create:
            self.check()
        try:
            self.path.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
            for name in self._wanted:
                (self.path / name).mkdir(mode=DIRECTORY_MODE, exist_ok=True)
        except OSError as error:
            raise self._not_made(error.errno or 0, error.filename) from None
        self._check_writable()
        if not self._location.varies:
            remove_stale(self._maildir)
            self._clean_at[self._maildir.path] = time.monotonic() + CLEAN_SECONDS

    def _owner_advice(self) -> str:
        """Return the command that gives the Maildir to the user of this process."""
        uid, gid = os.geteuid(), os.getegid()
        if os.access(self.path, os.F_OK):
            return f"; give it to the user of this process: chown -R {uid}:{gid} {self.path}"
        return f"; create it as root: install -d -m 0700 -o {uid} -g {gid} {self.path}"

    async def close(self) -> None:
        """Wait for the messages that are being written."""
        await super().close()
        writer, removing, lookup = self._writer, self._removing, self._lookup
        self._writer = self._removing = self._lookup = None
        if writer is not None and removing is not None:
            await asyncio.to_thread(writer.close)
            await asyncio.to_thread(removing.shutdown)
        if lookup is not None:
            await asyncio.to_thread(lookup.shutdown)

    async def _refuse_unknown(
        self, server: Any, session: Any, envelope: Any, address: str, options: list[str]
    ) -> Any:
        """Refuse a recipient whose Maildir does not exist; be the hook ``handle_RCPT``."""
        if self._lookup is None:
            self._lookup = ThreadPoolExecutor(LOOKUP_THREADS, thread_name_prefix="maildir-lookup")
        loop = asyncio.get_running_loop()
        maildir = self._recipient_maildir(self._location.names(address))
        try:
            found = await loop.run_in_executor(self._lookup, maildir.exists)
        except (OSError, RuntimeError) as error:  # the latter: no thread can be started
            self.log.error("[%s] recipient not looked up: %s", getattr(session, "id", ""), error)  # noqa: TRY400 - the disk, not us
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
        """Write a message, and answer once it is on the disk."""
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
        note_stored(self.log, mail, delivery.size, recipients)
        return stored_reply(mail)

    async def _deliver(self, delivery: MaildirDelivery) -> None:
        """Have a message written; on return it is stored.

        :raises OSError: it could not be written, and is removed
        :raises asyncio.CancelledError: it was given up before it was stored, and is removed
        """
        writer, removing = self._threads(delivery.maildir)
        stored = writer.hand_over(delivery)
        try:
            await stored
        except asyncio.CancelledError:
            if not delivery.give_up():
                return  # the thread was first: it is stored, and the client has to know
            if stored.done() and not stored.cancelled():
                stored.exception()  # nobody else asks
            if writer.withdraw(delivery):
                raise  # there is nothing of it
            with suppress(RuntimeError):  # no thread can be started: the one that writes removes it
                removed = asyncio.wrap_future(removing.submit(delivery.remove))
                await asyncio.wait({removed}, timeout=REMOVE_SECONDS)
            raise

    def _threads(self, maildir: MaildirDirectory) -> tuple[MaildirWriter, ThreadPoolExecutor]:
        """Return what writes, and what removes; now and then the latter removes stale files."""
        if self._writer is None or self._removing is None:
            # Made late: threads do not survive the daemon's fork.
            self._writer = MaildirWriter(self._writers)
            self._removing = ThreadPoolExecutor(1, thread_name_prefix="maildir-removing")
        now = time.monotonic()
        if now >= self._clean_at.get(maildir.path, 0.0):
            if len(self._clean_at) >= CLEAN_MAILDIRS:
                self._clean_at.clear()
            self._clean_at[maildir.path] = now + CLEAN_SECONDS
            with suppress(RuntimeError):  # no thread can be started
                self._removing.submit(remove_stale, maildir)
        return self._writer, self._removing

    def _unique_name(self) -> str:
        """Return a file's name that nobody else makes: time, process, number, host."""
        now = time.time_ns()
        seconds, microseconds = divmod(now // 1000, 1_000_000)
        return f"{seconds}.M{microseconds:06}P{os.getpid()}Q{next(_numbers)}.{self._host}"

    def __repr__(self) -> str:
        return f"<Maildir {self._location}>"
