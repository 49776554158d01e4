"""Maildir: one file a message, whole or not at all.

A message is written to ``tmp/``, synced, renamed into ``new/``, and the directory synced; only
then is it answered 250. Whatever fails before leaves nothing in ``new/``, and a reader never sees
half a message. The format is maildir(5)'s, lines end in LF as mail readers on Unix expect.

fsync(2) takes milliseconds and would stop every other session: threads do the writing, several
messages at once.
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
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smtpd_fork.errors import CannotCreateError
from smtpd_fork.net import describe
from smtpd_fork.sinks.base import Sink
from smtpd_fork.sinks.trace import trace_headers

if TYPE_CHECKING:
    from aiosmtpd.smtp import Envelope
    from aiosmtpd.smtp import Session as AnySession

__all__ = ["Maildir"]

log = logging.getLogger("smtpd_fork.maildir")

WRITERS = 16
"""Messages written at once: enough that one disk's fsyncs overlap."""

DIRECTORY_MODE = 0o700
FILE_MODE = 0o600

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""The disk, the user's quota, or the largest file allowed."""

_HEADER = re.compile(rb"[!-9;-~]+[ \t]*:|\n")
"""How a message with a header begins, or one without that says so (RFC 5322 2.2)."""

_numbers = itertools.count(1)


class Maildir(Sink):
    """Writes messages to a Maildir.

    :param path: the Maildir; made if it is not there, as are its parents
    :param writers: how many messages are written at once
    """

    def __init__(self, path: str | os.PathLike[str], *, writers: int = WRITERS) -> None:
        # Absolute at once: a daemon's working directory becomes / later.
        self.path = Path(path).expanduser().absolute()
        self._tmp = self.path / "tmp"
        self._new = self.path / "new"
        self._writers = writers
        self._pool: ThreadPoolExecutor | None = None
        # As maildir(5) wants it: no "/" and no ":" in a file's name.
        self._host = re.sub(r"[^A-Za-z0-9.-]", "_", socket.gethostname())

    def prepare(self) -> None:
        """Make the directories that are not there.

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

    def _cannot_create(self, error: OSError) -> CannotCreateError:
        return CannotCreateError(
            f"cannot make the Maildir {self.path}: {error.strerror} ({error.filename})"
        )

    async def close(self) -> None:
        """Wait for the messages that are being written."""
        pool, self._pool = self._pool, None
        if pool is not None:
            await asyncio.to_thread(pool.shutdown)

    async def handle_DATA(self, server: Any, session: AnySession, envelope: Envelope) -> str:
        """Write a message, and answer once it is on the disk."""
        content = envelope.original_content or b""
        queue_id = f"{getattr(session, 'id', '')}-{next(_numbers):x}".lstrip("-")
        now = datetime.now().astimezone()
        head = trace_headers(server.hostname, session, envelope, queue_id, now)
        if self._pool is None:
            # Made late: threads do not survive the daemon's fork.
            self._pool = ThreadPoolExecutor(self._writers, thread_name_prefix="maildir")
        loop = asyncio.get_running_loop()
        try:
            size = await loop.run_in_executor(self._pool, self._write, head, content)
        except OSError as error:
            about = {**_about(session), "queue_id": queue_id, "reason": str(error)}
            log.error("[%s] not written: %s", queue_id, error, extra=about)  # noqa: TRY400 - the disk, not us
            if error.errno in _NO_SPACE:
                return "452 4.3.1 Insufficient system storage, try again later"
            return "451 4.3.0 The message could not be stored, try again later"
        if log.isEnabledFor(logging.INFO):
            _tell(queue_id, session, envelope, size)
        return f"250 2.0.0 Ok: queued as {queue_id}"

    def _write(self, head: bytes, content: bytes) -> int:
        """Write one message, in a thread; return its size in bytes.

        :raises OSError: it is not in new/, and nothing of it is left in tmp/
        """
        name = self._unique_name()
        draft = self._tmp / name
        body = content.replace(b"\r\n", b"\n")
        if body and not _HEADER.match(body):
            head += b"\n"  # else the first line of the text would pass for part of Received
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
        try:
            try:
                _write_all(descriptor, head)
                _write_all(descriptor, body)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            draft.rename(self._new / name)
        except BaseException:
            with suppress(OSError):
                draft.unlink()
            raise
        _sync_directory(self._new)
        return len(head) + len(body)

    def _unique_name(self) -> str:
        """Return a file's name that nobody else makes: time, process, number, host."""
        now = time.time_ns()
        seconds, microseconds = divmod(now // 1000, 1_000_000)
        return f"{seconds}.M{microseconds}P{os.getpid()}Q{next(_numbers)}.{self._host}"

    def __repr__(self) -> str:
        return f"<Maildir {self.path}>"


def _about(session: AnySession) -> dict[str, str]:
    """Return the fields of a log entry about *session*."""
    about = {"client": describe(session.peer)}
    if name := getattr(session, "id", ""):
        about["session"] = name
    return about


def _tell(queue_id: str, session: AnySession, envelope: Envelope, size: int) -> None:
    about = _about(session)
    sender, recipients = _loggable(envelope.mail_from), len(envelope.rcpt_tos)
    log.info(
        "[%s] queued: from=<%s> to=%d size=%d client=%s",
        *(queue_id, sender, recipients, size, about["client"]),
        extra={**about, "queue_id": queue_id, "from": sender, "to": recipients, "size": size},
    )


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _loggable(text: str | None) -> str:
    """Return a stranger's word as one log line can hold it."""
    return "" if text in {None, "<>"} else ascii(text)[1:-1]
