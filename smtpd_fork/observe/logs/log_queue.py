"""LogQueue: log entries, queued for a thread that writes them. Mail never waits for the log.

An entry is formatted where it is logged and queued. The queue is bounded in bytes; beyond that,
entries are dropped and counted, and the count is logged once the target takes entries again.

Until :meth:`LogQueue.begin` entries are written at once: a thread would not survive the fork of a
daemon that detaches. After :meth:`LogQueue.end` they are written at once as well.

Not :class:`logging.handlers.QueueHandler` and ``QueueListener``: their queue is bounded in entries,
what does not fit is not counted, and each entry is written by itself; ``stop()`` waits for as long
as the target hangs, and a child of fork(2) has the queue without the thread.
"""

from __future__ import annotations

import logging
import math
import os
import time
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING
from weakref import WeakSet

from smtpd_fork.observe.logs.fields import add_session

if TYPE_CHECKING:
    from smtpd_fork.observe.logs.formats import Encode
    from smtpd_fork.observe.logs.log_targets import LogTarget

__all__ = ["LogQueue"]

QUEUE_BYTES = 4 << 20
"""4 MiB, some 40,000 entries: seconds of the worst flood."""

ENTRY_BYTES = 100
"""Memory of an entry besides its bytes."""

BATCH_BYTES = 1 << 16
"""Written at once; a pipe of Linux holds as much."""

LINGER_SECONDS = 0.02
"""Between two batches: waking the thread for each entry, and handing it the interpreter, would cost
the event loop several times what the entry itself does."""

FLUSH_SECONDS = 2.0
"""How long the end waits for what is queued; a fifth of the time that docker(1) gives a stop."""

GRACE_SECONDS = 1.0
"""And then for the thread, which a disk that hangs keeps from noticing the end."""

_WAKE = b""

_queues: WeakSet[LogQueue] = WeakSet()


class LogQueue(logging.Handler):
    """The handler of the root logger.

    :param encode: returns the entries of a record, as the target takes them
    """

    def __init__(
        self, target: LogTarget, encode: Encode, *, queue_bytes: int = QUEUE_BYTES
    ) -> None:
        super().__init__()
        self.addFilter(add_session)
        self._target = target
        self._encode = encode
        self._queue_bytes = queue_bytes
        self._closed = False
        self._reset()
        _queues.add(self)

    def _reset(self) -> None:
        # SimpleQueue, and no counter that both sides write: the garbage collector may interrupt
        # put(), its finalizers log as well, and a lock of ours would then be held already.
        self._queue: SimpleQueue[bytes | None] = SimpleQueue()
        self._put_bytes = 0  # written by callers, under the handler's lock
        self._dropped = 0  # as above
        self._taken_bytes = 0  # written by the thread
        self._failed = 0  # as above
        self._told = 0  # as above
        self._reopening = False
        self._mute = self._closed
        self._deadline = math.inf
        self._thread: Thread | None = None

    # -- callers ---------------------------------------------------------------------------------

    def emit(self, record: logging.LogRecord) -> None:
        """Queue *record*, or count it as lost."""
        if self._mute or self._put_bytes - self._taken_bytes >= self._queue_bytes:
            self._dropped += 1
            return
        try:
            entries = self._encode(record)
        except Exception:  # noqa: BLE001 - a fault of the log must not become one of the mail
            self._dropped += 1
            return
        if self._thread is None:
            deadline = time.monotonic() + FLUSH_SECONDS
            if not self._write(entries, deadline) and time.monotonic() >= deadline:
                self._mute = True  # wait once, not once an entry
            return
        for entry in entries:
            self._put_bytes += len(entry) + ENTRY_BYTES
            self._queue.put(entry)

    def begin(self) -> None:
        """Start the thread; after the last fork of a start."""
        self._mute = False
        self._thread = Thread(target=self._work, name="log", daemon=True)
        self._thread.start()

    def end(self, seconds: float = FLUSH_SECONDS) -> None:
        """Write what is queued, if it takes no longer than *seconds*, and end the thread."""
        thread = self._thread
        if thread is None:
            return
        self._deadline = time.monotonic() + seconds
        self._queue.put(None)
        thread.join(seconds + GRACE_SECONDS)
        assert self.lock is not None
        with self.lock:
            self._thread = None
            if thread.is_alive():
                self._mute = True  # the target belongs to the thread, for good
            elif not self._mute:
                self._queue.put(None)
                going_on = True
                while going_on:  # what came meanwhile
                    batch, going_on = self._gather()
                    self._write(batch, self._deadline)

    def reopen(self) -> None:
        """Open the target again; the result is logged."""
        self._reopening = True
        if self._thread is None:
            self._reopen(time.monotonic() + FLUSH_SECONDS)
        else:
            self._queue.put(_WAKE)

    def close(self) -> None:
        """End the thread, and close the target."""
        self.end()
        if not self._closed and not self._mute:
            self._target.close()  # else the thread may be using it
        self._closed = self._mute = True
        super().close()

    # -- the thread ------------------------------------------------------------------------------

    def _work(self) -> None:
        """Write what is queued, until the end comes."""
        going_on = True
        begun = -math.inf  # the last batch
        while going_on:
            batch, going_on = self._gather(begun + LINGER_SECONDS)
            begun = time.monotonic()
            held = sum(map(len, batch)) + ENTRY_BYTES * len(batch)
            fine = self._write(batch)
            self._taken_bytes += held
            if self._reopening:
                self._reopen()
            if fine:
                self._tell_of_losses()
            if time.monotonic() >= self._deadline:
                self._mute = True
                return

    def _gather(self, earliest: float = -math.inf) -> tuple[list[bytes], bool]:
        """Wait for entries; return a batch of them, and whether more may come.

        :param earliest: until then, more entries are waited for
        """
        batch: list[bytes] = []
        size = 0
        entry = self._queue.get()
        if entry and (left := earliest - time.monotonic()) > 0:
            time.sleep(left)
        while entry is not None:
            if entry:
                batch.append(entry)
                size += len(entry)
            if not entry or size >= BATCH_BYTES:
                return batch, True  # what comes after a reopen() is for the new target
            try:
                entry = self._queue.get_nowait()
            except Empty:
                return batch, True
        return batch, False

    def _write(self, entries: list[bytes], deadline: float | None = None) -> bool:
        """Write *entries*, however long it takes; return whether all of them were written.

        :param deadline: when to give up; default: the deadline of the end
        """

        def late() -> bool:
            return time.monotonic() >= (self._deadline if deadline is None else deadline)

        lost = len(entries) - self._target.write(entries, late)
        self._failed += lost
        return not lost

    def _reopen(self, deadline: float | None = None) -> None:
        self._reopening = False
        try:
            news = self._target.reopen()
            level = logging.INFO
        except OSError as error:
            news = f"cannot reopen the log, logging continues here: {error.strerror or error}"
            level = logging.ERROR
        if news is not None and logging.root.isEnabledFor(level):
            self._write(self._encode(_record(level, news)), deadline)

    def _tell_of_losses(self) -> None:
        lost = self._dropped + self._failed - self._told
        if not lost:
            return
        failed = self._failed
        text = f"{lost} entries of the log were lost: it could not be written"
        if self._write(self._encode(_record(logging.WARNING, text, lost=lost))):
            self._told += lost
        else:
            self._failed = failed  # the report is no loss


def _record(level: int, text: str, **more: object) -> logging.LogRecord:
    """Return a record of the log itself, which passes no logger."""
    about = {"name": "smtpd_fork.log", "levelno": level, "levelname": logging.getLevelName(level)}
    return logging.makeLogRecord({**about, "msg": text, **more})


def _forked() -> None:
    """Let a child process write its entries at once: thread and queue are those of its parent."""
    for log_queue in list(_queues):
        log_queue._reset()  # noqa: SLF001 - of this file


os.register_at_fork(after_in_child=_forked)
