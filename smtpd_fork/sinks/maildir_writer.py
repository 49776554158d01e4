"""MaildirWriter: writes the messages of a Maildir in groups.

The messages that wait when a thread becomes free are one group: one hand-over to a thread, and one
sync of the directory. A message is stored, and answered 250, after

1. its file was written to ``tmp/`` and fsync(2) of that file has succeeded,
2. it was renamed into ``new/``, and
3. fsync(2) of the directory ``new/``, called after the last rename of the group, has succeeded.

A message that is written alone gets the same guarantee, on every file system. Only step 3 is
shared: fsync(2) of a directory covers all names in it. Each file is synced by itself, because no
file system promises that syncing one file syncs another: ext4 commits its journal, with all that
other files have in it; xfs forces its log up to the file's last change; btrfs writes a log tree for
the file. All files are written, and the kernel begins to write them out, before the first of them
is synced: ext4 then needs one commit of its journal for all of them, instead of one each.

A group may go into several Maildirs: each ``new/`` is synced once, when all are renamed.

The directory is opened before the first rename. Linux reports an error of writing a directory to
everyone who had it open then (errseq_t), so an error cannot go to another caller only.

If a message cannot be written, synced or renamed, that message fails, and the others go on. If the
directory cannot be synced, all messages of the group that go into it fail, and are removed.

The first sync of a group does most of the work for all of it on ext4. If the second one takes long
all the same, several threads sync the others: file systems and disks combine syncs that wait at the
same time.

At most :data:`GROUPS` groups are written at once, each of at most :data:`GROUP_MESSAGES` messages.
The other messages wait; one that is given up is forgotten. A disk that hangs blocks only these
threads.
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

from smtpd_fork.sinks.grouped_delivery import Waiting, tell
from smtpd_fork.sinks.maildir_delivery import MaildirDelivery

if TYPE_CHECKING:
    from smtpd_fork.sinks.maildir_directory import OpenMaildir

__all__ = ["MaildirWriter"]

THREADS = 16
"""Enough for the syncs of a group to overlap."""

GROUPS = 2
"""While one group waits for the disk, the other uses the processor."""

GROUP_MESSAGES = 16
"""Each has a file open; those of all groups are fewer than RESERVED_DESCRIPTORS."""

GROUP_BYTES = 1 << 20
"""A group of this size takes no further message: small ones must not wait for many large ones."""

GROUP_MAILDIRS = 8
"""Maildirs of recipients that are open at once: two descriptors each."""

SLOW_SYNC_SECONDS = 0.001
"""More than it takes to wake a thread."""


class MaildirWriter:
    """Writes messages into Maildirs, in threads. Several event loops may use it.

    :param threads: how many there may be
    """

    def __init__(self, threads: int = THREADS) -> None:
        self._groups = min(GROUPS, threads)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="maildir")
        self._lock = threading.Lock()
        self._waiting: deque[Waiting[MaildirDelivery]] = deque()
        self._turns: set[object] = set()

    def hand_over(self, delivery: MaildirDelivery) -> asyncio.Future[None]:
        """Have a message written; return a future that is done once it is stored.

        :raises OSError: no thread can be started, and none has taken the message
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
            # The pool keeps the call, and a thread that becomes free makes it.
            with self._lock:
                self._turns.discard(turn)
            if self.withdraw(delivery):
                raise OSError(errno.EAGAIN, str(error)) from None
        return waiting.stored

    def withdraw(self, delivery: MaildirDelivery) -> bool:
        """Forget a message; return False if a thread has taken it already."""
        with self._lock:
            for index, waiting in enumerate(self._waiting):
                if waiting.delivery is delivery:
                    del self._waiting[index]
                    return True
        return False

    def close(self) -> None:
        """Wait, in a thread, until all messages are written."""
        self._pool.shutdown()

    def _write_groups(self, turn: object) -> None:
        """Write groups, in a thread, until nothing waits."""
        while group := self._take(turn):
            self._write([waiting.delivery for waiting in group])
            for loop, some in groupby(group, attrgetter("loop")):
                with suppress(RuntimeError):  # the loop is closed: nobody waits
                    loop.call_soon_threadsafe(tell, list(some))

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
        """Write messages; on return each is stored, or has failed and is removed."""
        try:
            group = [each for each in group if each.proceed(MaildirDelivery.write)]
            if len(group) > 1:
                for each in group:
                    each.begin_sync()
            group = self._sync_files(group)
            if group:
                self._publish(group)
        except Exception as error:  # noqa: BLE001 - raised in the sessions that wait
            for each in group:
                each.fail(error)

    def _sync_files(self, group: list[MaildirDelivery]) -> list[MaildirDelivery]:
        """Sync the files; return the messages that did not fail."""
        left, synced, done = deque(group), list[MaildirDelivery](), threading.Semaphore(0)

        def sync(most: int) -> None:
            with suppress(IndexError):  # none is left
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
            done.acquire()  # what the other threads have taken
        return synced

    def _publish(self, group: list[MaildirDelivery]) -> None:
        """Rename messages into ``new/`` and sync it: then they are stored."""
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
                    except Exception as error:  # noqa: BLE001 - raised in the sessions that wait
                        for each in part:
                            each.fail(error)


def _publication(part: list[MaildirDelivery]) -> Iterator[None]:
    """Rename messages of one Maildir; when asked again sync it, and declare them stored.

    :raises OSError: the directory cannot be opened or synced
    """
    with part[0].maildir.opened() as maildir:
        renamed = [each for each in part if each.proceed(partial(_publish_in, maildir))]
        yield
        if renamed:
            maildir.sync()
    for each in renamed:
        each.settle()


def _publish_in(maildir: OpenMaildir, delivery: MaildirDelivery) -> None:
    delivery.publish(maildir)
