"""Maildir: one file a message, whole or not at all.

A message is written to ``tmp/``, synced, renamed into ``new/``, and the directory synced; only
then is it answered 250. After 250 it is in ``new/``, once. After any other answer it is not there,
and at most a file in ``tmp/`` is left, which is removed when it is old. The message of a client
that is gone before its answer is stored: some clients never wait for answers.

The format is maildir(5)'s. Lines end in LF as mail readers on Unix expect; BINARYMIME is not made
of lines, and is stored as it came.

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
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smtpd_fork.errors import CannotCreateError
from smtpd_fork.gate import ClientLine, client_reporter
from smtpd_fork.peer_address import describe
from smtpd_fork.sinks.base import Sink
from smtpd_fork.sinks.maildir_delivery import MaildirDelivery
from smtpd_fork.sinks.maildir_writer import THREADS, MaildirWriter
from smtpd_fork.sinks.trace import trace_headers

if TYPE_CHECKING:
    from aiosmtpd.smtp import Envelope
    from aiosmtpd.smtp import Session as AnySession

__all__ = ["Maildir"]

log = logging.getLogger("smtpd_fork.maildir")

DIRECTORY_MODE = 0o700

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""The disk, the user's quota, or the largest file allowed."""

REMOVE_SECONDS = 1.0
"""How long the answer 451 to a message that took too long waits until nothing of it is left."""

STALE_SECONDS = 36 * 3600
"""A file in tmp/ that nobody has read or written for so long is nobody's (maildir(5))."""

CLEAN_SECONDS = 3600.0
"""Time between two looks for stale files."""

CLEAN_FILES = 10_000
"""Files that one look takes: less than a second's work. The next look takes the rest."""

_numbers = itertools.count(1)


class Maildir(Sink):
    """Writes messages to a Maildir.

    :param path: the Maildir; made if it is not there, as are its parents
    :param writers: how many threads write
    """

    supports_binarymime = True

    def __init__(self, path: str | os.PathLike[str], *, writers: int = THREADS) -> None:
        # Absolute at once: a daemon's working directory becomes / later.
        self.path = Path(path).expanduser().absolute()
        self._tmp = self.path / "tmp"
        self._new = self.path / "new"
        self._writers = writers
        self._reporter = client_reporter()
        self._writer: MaildirWriter | None = None
        self._removing: ThreadPoolExecutor | None = None
        self._clean_at = 0.0
        # As maildir(5) wants it: no "/" and no ":" in a file's name.
        self._host = re.sub(r"[^A-Za-z0-9.-]", "_", socket.gethostname())

    def prepare(self) -> None:
        """Make the directories that are not there; remove stale files from ``tmp/``.

        :raises CannotCreateError: they cannot be made, or not be written to
        """
        try:
            self.path.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
            for name in ("tmp", "new", "cur"):
                (self.path / name).mkdir(mode=DIRECTORY_MODE, exist_ok=True)
        except OSError as error:
            raise self._cannot_create(error) from None
        for place in (self._tmp, self._new):
            if not os.access(place, os.W_OK | os.X_OK):
                raise CannotCreateError(f"cannot write to the Maildir {self.path}: no permission")
        remove_stale(self._tmp)
        self._clean_at = time.monotonic() + CLEAN_SECONDS

    def _cannot_create(self, error: OSError) -> CannotCreateError:
        return CannotCreateError(
            f"cannot make the Maildir {self.path}: {error.strerror} ({error.filename})"
        )

    async def close(self) -> None:
        """Wait for the messages that are being written."""
        self._reporter.close()
        writer, removing = self._writer, self._removing
        self._writer = self._removing = None
        if writer is not None and removing is not None:
            await asyncio.to_thread(writer.close)
            await asyncio.to_thread(removing.shutdown)

    async def handle_DATA(self, server: Any, session: AnySession, envelope: Envelope) -> str:
        """Write a message, and answer once it is on the disk."""
        queue_id = f"{getattr(session, 'id', '')}-{next(_numbers):x}".lstrip("-")
        about = {**_about(session), "queue_id": queue_id}
        now = _local_time(int(time.time()))
        delivery = MaildirDelivery(
            *(str(self.path), self._unique_name()),
            trace_headers(server.hostname, session, envelope, queue_id, now),
            envelope.original_content or b"",
            binary=getattr(envelope, "body", "") == "BINARYMIME",
        )
        try:
            await self._deliver(delivery)
        except OSError as error:
            kind = errno.errorcode.get(error.errno or 0, "")
            self._reporter.note(
                ClientLine.of(
                    *(log, logging.ERROR, session.peer, "not written", str(error)),
                    kind=kind,
                    session=about.get("session", ""),
                    queue_id=queue_id,
                )
            )
            if error.errno in _NO_SPACE:
                return "452 4.3.1 Insufficient system storage, try again later"
            return "451 4.3.0 The message could not be stored, try again later"
        if log.isEnabledFor(logging.INFO):
            _tell(about, envelope, delivery.size)
        return f"250 2.0.0 Ok: queued as {queue_id}"

    async def _deliver(self, delivery: MaildirDelivery) -> None:
        """Have a message written; on return it is stored.

        :raises OSError: it could not be written, and is removed
        :raises asyncio.CancelledError: it was given up before it was stored, and is removed
        """
        if self._writer is None or self._removing is None:
            # Made late: threads do not survive the daemon's fork.
            self._writer = MaildirWriter(str(self.path), self._writers)
            self._removing = ThreadPoolExecutor(1, thread_name_prefix="maildir-removing")
        if time.monotonic() >= self._clean_at:
            self._clean_at = time.monotonic() + CLEAN_SECONDS
            with suppress(RuntimeError):  # no thread can be started
                self._removing.submit(remove_stale, self._tmp)
        writer, removing = self._writer, self._removing
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

    def _unique_name(self) -> str:
        """Return a file's name that nobody else makes: time, process, number, host."""
        now = time.time_ns()
        seconds, microseconds = divmod(now // 1000, 1_000_000)
        return f"{seconds}.M{microseconds:06}P{os.getpid()}Q{next(_numbers)}.{self._host}"

    def __repr__(self) -> str:
        return f"<Maildir {self.path}>"


@lru_cache(maxsize=1)
def _local_time(seconds: int) -> datetime:
    """Return a time with its time zone; the same object for all messages of one second."""
    return datetime.fromtimestamp(seconds).astimezone()


def _about(session: AnySession) -> dict[str, str]:
    """Return the fields of a log entry about *session*."""
    about = {"client": describe(session.peer)}
    if name := getattr(session, "id", ""):
        about["session"] = name
    return about


def _tell(about: dict[str, str], envelope: Envelope, size: int) -> None:
    sender, recipients = _loggable(envelope.mail_from), len(envelope.rcpt_tos)
    log.info(
        "[%s] queued: from=<%s> to=%d size=%d client=%s",
        *(about["queue_id"], sender, recipients, size, about["client"]),
        extra={**about, "from": sender, "to": recipients, "size": size},
    )


def remove_stale(tmp: Path) -> None:
    """Remove what interrupted deliveries have left in *tmp*: regular files of ours that are old.

    A ``tmp/`` that is a symbolic link is left alone, as are the files of other users: whoever owns
    the Maildir must not have us remove files elsewhere.
    """
    old = time.time() - STALE_SECONDS
    removed = 0
    with suppress(OSError), ExitStack() as stack:
        directory = os.open(tmp, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        stack.callback(os.close, directory)
        entries = stack.enter_context(os.scandir(directory))
        for entry in itertools.islice(entries, CLEAN_FILES):
            with suppress(OSError):
                if _is_stale(entry.stat(follow_symlinks=False), old):
                    os.unlink(entry.name, dir_fd=directory)
                    removed += 1
    if removed:
        log.info("removed %d stale files from %s", removed, tmp)


def _is_stale(facts: os.stat_result, old: float) -> bool:
    own_file = stat.S_ISREG(facts.st_mode) and facts.st_uid == os.geteuid()
    return own_file and max(facts.st_atime, facts.st_mtime) < old


def _loggable(text: str | None) -> str:
    """Return a stranger's word as one log line can hold it."""
    return "" if text in {None, "<>"} else ascii(text)[1:-1]
