"""MaildirWriter: write messages into Maildirs in groups.

The messages that wait when a thread becomes free form a group, for which a thread is woken once and
the directory is synced once. A message is stored, and answered with 250, after

1. its file was written to ``tmp/`` and fsync(2) of that file has succeeded,
2. it was renamed into ``new/``, and
3. fsync(2) of the directory ``new/``, called after the last rename of the group, has succeeded.

A message has the same guarantee as if it were written alone, on every file system. Only step 3 is
shared: fsync(2) of a directory covers all names in it. Each file is synced by itself, because no
file system guarantees that syncing one file syncs another: ext4 commits its journal with the
changes of all files, xfs forces its log up to the last change of the file, btrfs writes a log tree
for the file. All files are written, and the kernel begins to write them to disk, before the first
one is synced; ext4 then needs one journal commit for all of them, instead of one for each.

A group may contain messages for several Maildirs: each ``new/`` is synced once, after all renames.

The directory is opened before the first rename. Linux reports a write error of a directory to all
descriptors that were open at that time (errseq_t), so an error is not lost to another caller.

If a message cannot be written, synced or renamed, only this message fails. If a directory cannot be
synced, all messages of the group in this directory fail and are removed.

On ext4 the first sync of a group does most of the work for the whole group. If the second sync is
slow nevertheless, several threads sync the rest: file systems and disks combine concurrent syncs.

At most :data:`GROUPS` groups are written concurrently, each of at most :data:`GROUP_MESSAGES`
messages. The other messages wait; a waiting message that is given up is removed from the queue. A
disk that hangs blocks only these threads.
"""

from __future__ import annotations

import asyncio
import errno
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING

from smtpd_fork.sinks.grouped_delivery import Waiting, notify
from smtpd_fork.sinks.maildir_delivery import MaildirDelivery

if TYPE_CHECKING:
    from smtpd_fork.sinks.maildir_directory import OpenMaildir

__all__ = ["MaildirWriter"]

THREADS = 16
"""Default number of threads; enough for the syncs of a group to overlap."""

GROUPS = 2
"""Concurrent groups: while one waits for the disk, the other uses the CPU."""

GROUP_MESSAGES = 16
"""Maximum messages of a group. Each has an open file; all groups together have fewer than
RESERVED_DESCRIPTORS."""

GROUP_BYTES = 1 << 20
"""Bytes after which a group is full: small messages must not wait for many large ones."""

GROUP_MAILDIRS = 8
"""Maximum Maildirs of recipients that are open at a time, with two descriptors each."""

SLOW_SYNC_SECONDS = 0.001
"""Seconds above which a sync is slow: longer than waking a thread."""


class MaildirWriter:
    """Writes messages into Maildirs, in threads. Several event loops may use it.

    :param threads: maximum number of threads
    """

    def __init__(self, threads: int = THREADS) -> None:
        self._groups = min(GROUPS, threads)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="maildir")
        self._lock = threading.Lock()
        self._waiting: deque[Waiting[MaildirDelivery]] = deque()
        self._turns: set[object] = set()

    def submit(self, delivery: MaildirDelivery) -> asyncio.Future[None]:
        """Queue a message; return a future that is done when the message is stored.

        :raises OSError: no thread can be started, and no running one has taken the message
        """
        loop = asyncio.get_running_loop()
        waiting = Waiting(delivery, loop, loop.create_future())
        turn = object()
        with self._lock:
            self._waiting.append(waiting)
            if len(self._turns) >= self._groups:
                return waiting.stored
            self._turns.add(turn)
        try:
            self._pool.submit(self._write_groups, turn)
        except RuntimeError as error:
            # The pool keeps the call in its queue, so another thread may take the message.
            with self._lock:
                self._turns.discard(turn)
            if self.withdraw(delivery):
                raise OSError(errno.EAGAIN, str(error)) from None
        return waiting.stored

    def withdraw(self, delivery: MaildirDelivery) -> bool:
        """Remove a message from the queue; return False if a thread has taken it already."""
        with self._lock:
            for index, waiting in enumerate(self._waiting):
                if waiting.delivery is delivery:
                    del self._waiting[index]
                    return True
        return False

    def close(self) -> None:
        """Wait until all messages are written. Blocks."""
        self._pool.shutdown()

    def _write_groups(self, turn: object) -> None:
        """Write groups until no message waits; runs in a thread."""
        while group := self._take(turn):
            self._write([waiting.delivery for waiting in group])
            for loop, some in groupby(group, attrgetter("loop")):
                with suppress(RuntimeError):  # the loop is closed
                    loop.call_soon_threadsafe(notify, list(some))

    def _take(self, turn: object) -> list[Waiting[MaildirDelivery]]:
        group: list[Waiting[MaildirDelivery]] = []
        size = 0
        with self._lock:
            while self._waiting and len(group) < GROUP_MESSAGES and size < GROUP_BYTES:
                group.append(self._waiting.popleft())
                size += group[-1].delivery.content_size
            if not group:
                self._turns.discard(turn)
        return group

    def _write(self, group: list[MaildirDelivery]) -> None:
        """Write messages; on return each is stored, or has failed and was removed."""
        try:
            group = [each for each in group if each.proceed(MaildirDelivery.write)]
            if len(group) > 1:
                for each in group:
                    each.begin_sync()
            group = self._sync_files(group)
            if group:
                self._publish(group)
        except Exception as error:  # noqa: BLE001 - raised in the waiting sessions
            for each in group:
                each.fail(error)

    def _sync_files(self, group: list[MaildirDelivery]) -> list[MaildirDelivery]:
        """Sync the files; return the messages without an error."""
        left, synced, done = deque(group), list[MaildirDelivery](), threading.Semaphore(0)

        def sync(most: int) -> None:
            with suppress(IndexError):  # no message is left
                for _ in range(most):
                    each = left.popleft()
                    if each.proceed(MaildirDelivery.sync):
                        synced.append(each)
                    done.release()

        sync(1)
        began = time.monotonic()
        sync(1)
        if time.monotonic() - began > SLOW_SYNC_SECONDS:
            with suppress(RuntimeError):  # no thread can be started
                for _ in range(len(left) - 1):
                    self._pool.submit(sync, len(group))
        sync(len(group))
        for _ in group:
            done.acquire()  # wait for the other threads
        return synced

    def _publish(self, group: list[MaildirDelivery]) -> None:
        """Rename messages into ``new/``, sync it, and mark them as stored."""
        by_path: dict[str, list[MaildirDelivery]] = {}
        for each in group:
            by_path.setdefault(each.maildir.path, []).append(each)
        parts = list(by_path.values())
        for start in range(0, len(parts), GROUP_MAILDIRS):
            some = [(part, _publication(part)) for part in parts[start : start + GROUP_MAILDIRS]]
            for _ in ("rename", "sync"):
                for part, steps in some:
                    try:
                        next(steps, None)
                    except Exception as error:  # noqa: BLE001 - raised in the waiting sessions
                        for each in part:
                            each.fail(error)


def _publication(part: list[MaildirDelivery]) -> Iterator[None]:
    """Rename messages of a Maildir; in the next step sync it, and mark them as stored.

    :raises OSError: the directory cannot be opened or synced
    """
    with part[0].maildir.opened() as maildir:
        renamed = [each for each in part if each.proceed(partial(_publish_in, maildir))]
        yield
        if renamed:
            maildir.sync()
    for each in renamed:
        each.mark_stored()


def _publish_in(maildir: OpenMaildir, delivery: MaildirDelivery) -> None:
    delivery.publish(maildir)
