"""MboxWriter: append messages to mbox files, in threads.

Only one thread at a time appends to a file. The messages that arrive meanwhile form the next group,
which is written with one lock and one fsync(2).
"""

from __future__ import annotations

import asyncio
import errno
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, TypeAlias

from smtpd_fork.sinks.grouped_delivery import Waiting, notify
from smtpd_fork.sinks.mbox_delivery import MboxDelivery

if TYPE_CHECKING:
    from smtpd_fork.sinks.mbox_file import MboxFile

__all__ = ["MboxWriter"]

GROUP_MESSAGES = 32

GROUP_BYTES = 1 << 20
"""Bytes after which a group is full: small messages must not wait for many large ones."""

WaitingMessage: TypeAlias = Waiting[MboxDelivery]


class MboxWriter:
    """Appends messages to mbox files. Several event loops may use it.

    :param threads: maximum number of threads
    :param lock_seconds: timeout of waiting for a file that another program has locked
    """

    def __init__(self, threads: int, lock_seconds: float) -> None:
        self._lock_seconds = lock_seconds
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="mbox")
        self._lock = threading.Lock()
        self._waiting: dict[str, deque[WaitingMessage]] = {}

    def submit(self, mbox: MboxFile, delivery: MboxDelivery) -> asyncio.Future[None]:
        """Queue a message; return a future that is done when the message is stored.

        :raises OSError: no thread can be started, and no running one has taken the message
        """
        loop = asyncio.get_running_loop()
        waiting = WaitingMessage(delivery, loop, loop.create_future())
        with self._lock:
            if queue := self._waiting.get(mbox.path):
                queue.append(waiting)
                return waiting.stored
            begun = mbox.path in self._waiting
            self._waiting[mbox.path] = deque([waiting])
            if begun:
                return waiting.stored
        try:
            self._pool.submit(self._write_all, mbox)
        except RuntimeError as error:
            with self._lock:
                abandoned = self._waiting.pop(mbox.path, ())
            failure = OSError(errno.EAGAIN, str(error))
            for each in abandoned:
                each.delivery.fail(failure)
            self._notify([each for each in abandoned if each is not waiting])
            if waiting in abandoned:
                raise failure from None
        return waiting.stored

    def withdraw(self, mbox: MboxFile, delivery: MboxDelivery) -> bool:
        """Remove a message from the queue; return False if a thread has taken it already."""
        with self._lock:
            queue = self._waiting.get(mbox.path, deque())
            for index, waiting in enumerate(queue):
                if waiting.delivery is delivery:
                    del queue[index]
                    return True
        return False

    def close(self) -> None:
        """Wait until all messages are written. Blocks."""
        self._pool.shutdown()

    def _write_all(self, mbox: MboxFile) -> None:
        """Append messages to a file until none waits for it; runs in a thread."""
        while group := self._take(mbox.path):
            deliveries = [waiting.delivery for waiting in group]
            try:
                mbox.append(deliveries, self._lock_seconds)
            except Exception as error:  # noqa: BLE001 - raised in the waiting sessions
                for each in deliveries:
                    each.fail(error)
            self._notify(group)

    def _take(self, path: str) -> list[WaitingMessage]:
        group: list[WaitingMessage] = []
        size = 0
        with self._lock:
            queue = self._waiting.get(path, deque())
            while queue and len(group) < GROUP_MESSAGES and size < GROUP_BYTES:
                group.append(queue.popleft())
                size += group[-1].delivery.content_size
            if not group:
                self._waiting.pop(path, None)
        return group

    @staticmethod
    def _notify(group: list[WaitingMessage]) -> None:
        for loop, some in groupby(group, attrgetter("loop")):
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(notify, list(some))
