"""MboxWriter: appends messages to mbox files, in threads.

One thread at a time appends to a file. The messages that wait for it meanwhile are the next group:
one lock and one fsync(2) for all of them.
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

from smtpd_fork.sinks.grouped_delivery import Waiting, tell
from smtpd_fork.sinks.mbox_delivery import MboxDelivery

if TYPE_CHECKING:
    from smtpd_fork.sinks.mbox_file import MboxFile

__all__ = ["MboxWriter"]

GROUP_MESSAGES = 32

GROUP_BYTES = 1 << 20
"""A group of this size takes no further message: small ones must not wait for many large ones."""

WaitingMessage: TypeAlias = Waiting[MboxDelivery]


class MboxWriter:
    """Appends messages to mbox files. Several event loops may use it.

    :param threads: how many there may be
    :param lock_seconds: to wait for a file that another program has locked
    """

    def __init__(self, threads: int, lock_seconds: float) -> None:
        self._lock_seconds = lock_seconds
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="mbox")
        self._lock = threading.Lock()
        self._waiting: dict[str, deque[WaitingMessage]] = {}

    def hand_over(self, mbox: MboxFile, delivery: MboxDelivery) -> asyncio.Future[None]:
        """Have a message written; return a future that is done once it is stored.

        :raises OSError: no thread can be started, and none has taken the message
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
            self._tell([each for each in abandoned if each is not waiting])
            if waiting in abandoned:
                raise failure from None
        return waiting.stored

    def withdraw(self, mbox: MboxFile, delivery: MboxDelivery) -> bool:
        """Forget a message; return False if a thread has taken it already."""
        with self._lock:
            queue = self._waiting.get(mbox.path, deque())
            for index, waiting in enumerate(queue):
                if waiting.delivery is delivery:
                    del queue[index]
                    return True
        return False

    def close(self) -> None:
        """Wait, in a thread, until all messages are written."""
        self._pool.shutdown()

    def _write_all(self, mbox: MboxFile) -> None:
        """Append to a file, in a thread, until nothing waits for it."""
        while group := self._take(mbox.path):
            deliveries = [waiting.delivery for waiting in group]
            try:
                mbox.append(deliveries, self._lock_seconds)
            except Exception as error:  # noqa: BLE001 - raised in the sessions that wait
                for each in deliveries:
                    each.fail(error)
            self._tell(group)

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
    def _tell(group: list[WaitingMessage]) -> None:
        for loop, some in groupby(group, attrgetter("loop")):
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(tell, list(some))
