"""LogQueue: queues log entries for a thread that writes them, so that mail never waits for the log.

An entry is formatted by the caller, and then queued. The size of the queue is limited in bytes;
entries that do not fit are dropped and counted, and the count is logged when the target accepts
entries again.

Before :meth:`LogQueue.begin` and after :meth:`LogQueue.end`, entries are written immediately and
without the thread: a thread would not survive the fork of a daemon that detaches.

:class:`logging.handlers.QueueHandler` and ``QueueListener`` are not used: their queue is limited in
entries, dropped entries are not counted, and each entry is written separately; ``stop()`` waits
while the target hangs, and a child process has the queue without the thread.
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
"""Maximum size of the queue: 4 MiB or about 40,000 entries, which is enough for several seconds of
the highest load."""

ENTRY_BYTES = 100
"""Memory overhead of an entry."""

BATCH_BYTES = 1 << 16
"""Maximum bytes of one write, unless an entry is larger; it is the capacity of a pipe on Linux."""

BATCH_INTERVAL_SECONDS = 0.02
"""Minimum time between two batches: waking the thread for each entry, with a switch of the
interpreter lock, would cost the event loop several times as much as the entry itself."""

FLUSH_SECONDS = 2.0
"""Time limit for writing the queued entries at the end; a fifth of docker(1)'s time for a stop."""

JOIN_SECONDS = 1.0
"""Additional time limit for the end of the thread, which may be blocked by a disk that hangs."""

_WAKE = b""

_queues: WeakSet[LogQueue] = WeakSet()


class LogQueue(logging.Handler):
    """The handler of the root logger.

    :param target: receives the entries
    :param encode: returns a record as entries in the format of the target
    :param queue_bytes: maximum size of the queue
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
        # SimpleQueue, as its put() is reentrant: the garbage collector may interrupt it, and a
        # finalizer may log. For the same reason no lock is shared with the thread: each counter is
        # written either by callers or by the thread.
        self._queue: SimpleQueue[bytes | None] = SimpleQueue()
        self._put_bytes = 0  # written by callers, with the lock of logging.Handler
        self._dropped = 0  # the same
        self._taken_bytes = 0  # written by the thread
        self._failed = 0  # the same
        self._reported = 0  # the same
        self._reopening = False
        self._muted = self._closed
        self._deadline = math.inf
        self._thread: Thread | None = None

    # -- callers ---------------------------------------------------------------------------------

    def emit(self, record: logging.LogRecord) -> None:
        """Queue *record*, or count it as lost."""
        if self._muted or self._put_bytes - self._taken_bytes >= self._queue_bytes:
            self._dropped += 1
            return
        try:
            entries = self._encode(record)
        except Exception:  # noqa: BLE001 - an error of the log must not affect mail
            self._dropped += 1
            return
        if self._thread is None:
            deadline = time.monotonic() + FLUSH_SECONDS
            if not self._write(entries, deadline) and time.monotonic() >= deadline:
                self._muted = True  # do not wait again for each further entry
            return
        for entry in entries:
            self._put_bytes += len(entry) + ENTRY_BYTES
            self._queue.put(entry)

    def begin(self) -> None:
        """Start the thread; call this after the last fork of the start."""
        self._muted = False
        self._thread = Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def end(self, seconds: float = FLUSH_SECONDS) -> None:
        """Write the queued entries within *seconds*, and end the thread."""
        thread = self._thread
        if thread is None:
            return
        self._deadline = time.monotonic() + seconds
        self._queue.put(None)
        thread.join(seconds + JOIN_SECONDS)
        assert self.lock is not None
        with self.lock:
            self._thread = None
            if thread.is_alive():
                self._muted = True  # the thread may still use the target
            elif not self._muted:
                self._queue.put(None)
                more = True
                while more:  # entries that were queued meanwhile
                    batch, more = self._next_batch()
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
        if not self._closed and not self._muted:
            self._target.close()  # while muted, the thread may still use it
        self._closed = self._muted = True
        super().close()

    # -- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        """Write queued entries until :meth:`end` is called."""
        more = True
        begun = -math.inf  # start of the last batch
        while more:
            batch, more = self._next_batch(begun + BATCH_INTERVAL_SECONDS)
            begun = time.monotonic()
            held = sum(map(len, batch)) + ENTRY_BYTES * len(batch)
            written = self._write(batch)
            self._taken_bytes += held
            if self._reopening:
                self._reopen()
            if written:
                self._report_losses()
            if time.monotonic() >= self._deadline:
                self._muted = True
                return

    def _next_batch(self, earliest: float = -math.inf) -> tuple[list[bytes], bool]:
        """Wait for entries, and return a batch of them, and whether more may follow.

        :param earliest: collect entries at least until this time
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
                return batch, True  # entries after a reopen() are for the new target
            try:
                entry = self._queue.get_nowait()
            except Empty:
                return batch, True
        return batch, False

    def _write(self, entries: list[bytes], deadline: float | None = None) -> bool:
        """Write *entries*; return whether all of them were written.

        :param deadline: time limit; default: that of :meth:`end`, so none before :meth:`end`
        """

        def timed_out() -> bool:
            return time.monotonic() >= (self._deadline if deadline is None else deadline)

        lost = len(entries) - self._target.write(entries, timed_out)
        self._failed += lost
        return not lost

    def _reopen(self, deadline: float | None = None) -> None:
        self._reopening = False
        try:
            message = self._target.reopen()
            level = logging.INFO
        except OSError as error:
            message = f"cannot reopen the log, logging continues here: {error.strerror or error}"
            level = logging.ERROR
        if message is not None and logging.root.isEnabledFor(level):
            self._write(self._encode(_record(level, message)), deadline)

    def _report_losses(self) -> None:
        lost = self._dropped + self._failed - self._reported
        if not lost:
            return
        failed = self._failed
        text = f"{lost} log entries were lost: they could not be written"
        if self._write(self._encode(_record(logging.WARNING, text, lost=lost))):
            self._reported += lost
        else:
            self._failed = failed  # do not count the report itself as lost


def _record(level: int, text: str, **fields: object) -> logging.LogRecord:
    """Return a record about the log itself, which is written without a logger."""
    about = {"name": "smtpd_fork.log", "levelno": level, "levelname": logging.getLevelName(level)}
    return logging.makeLogRecord({**about, "msg": text, **fields})


def _reset_after_fork() -> None:
    """Reset all queues in a child process: it has no thread, and its parent writes the entries."""
    for log_queue in list(_queues):
        log_queue._reset()  # noqa: SLF001 - of this file


os.register_at_fork(after_in_child=_reset_after_fork)
