"""StopWatchdog: ends a stopping process even if a handler prevents its end.

A handler can block the event loop (``time.sleep()`` in a hook), hang in a thread for which Python
waits at its exit, or ignore its cancellation. A separate thread therefore watches the stop. It
receives signals by the loop's wake-up descriptor (signal.set_wakeup_fd), to which Python writes
them even while the loop is blocked, and passes them on to the loop. When the time is over, the
thread logs the code that still runs, cleans up as far as possible, and ends the process.

Code that never releases Python's global lock (in a C extension) stops this thread too; then only
SIGKILL helps.
"""

from __future__ import annotations

import logging
import math
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import TYPE_CHECKING

from smtpd_fork.errors import ExitStatus

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["StopWatchdog"]

log = logging.getLogger("smtpd_fork.daemon")

STOP_SECONDS = 10.0
"""Added to --shutdown-timeout: to send replies, close handlers, and end a new process."""

LAST_SECONDS = 3.0
"""Time after a second signal, and for tasks and threads that still run after the server's stop."""

CLEAN_UP_SECONDS = 10.0
"""Time to clean up files, log and cleanup process, which have their own limits, and for Python's
exit."""

_IDLE = ("concurrent/futures/thread.py", "_worker")
"""File and function in which an idle thread of an executor waits."""


class StopWatchdog:
    """Watches the stop of the process.

    :param timeout: returns the present value of ``--shutdown-timeout``, in seconds
    :param clean_up: removes files and sockets; called in a thread
    """

    def __init__(self, timeout: Callable[[], float], clean_up: Callable[[], object]) -> None:
        self._timeout = timeout
        self._clean_up = clean_up
        self._deadline = math.inf
        self._stop_signals: Collection[int] = ()
        self._signalled = False
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._loop_wakeup: int | None = None
        self._cleaning = threading.Event()
        self._cleaned = threading.Event()
        # Both are started now, as Python 3.12 and later start no threads during their exit.
        for target, name in ((self._watch, "ending"), (self._clean, "cleaning")):
            threading.Thread(target=target, name=name, daemon=True).start()

    def listen(self, stop_signals: Collection[int]) -> None:
        """Receive signals before the loop does.

        Call it in the main thread after the loop's handlers were set, and again after the loop was
        started again, as the loop then replaces the descriptor.
        """
        self._stop_signals = stop_signals
        wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        if wakeup != self._write:
            # A duplicate, as the loop closes its own descriptor.
            before, self._loop_wakeup = self._loop_wakeup, os.dup(wakeup)
            if before is not None:
                os.close(before)

    def server_stops(self) -> None:
        """Begin the time limit of a stop, whether a signal or something else has caused it."""
        self._limit_to(self._timeout() + STOP_SECONDS)

    def server_has_stopped(self) -> None:
        """Begin the time limit of tasks and threads that still run after the server's stop."""
        self._limit_to(LAST_SECONDS)

    def loop_has_ended(self) -> None:
        """Begin the time limit of the exit; signals are received without the loop from now on."""
        for number in self._stop_signals:
            signal.signal(number, self._second_signal)
        self._deadline = math.inf
        self._limit_to(CLEAN_UP_SECONDS)

    def _limit_to(self, seconds: float) -> None:
        self._deadline = min(self._deadline, time.monotonic() + seconds)
        with suppress(BlockingIOError):
            os.write(self._write, b"\0")

    def _second_signal(self, number: int, frame: FrameType | None) -> None:
        self._limit_to(0)

    def _watch(self) -> None:
        poll = select.poll()
        poll.register(self._read, select.POLLIN)
        while (left := self._deadline - time.monotonic()) > 0:
            poll.poll(None if left == math.inf else left * 1000)
            with suppress(BlockingIOError):
                self._received(os.read(self._read, 4096))
        self._end()

    def _received(self, data: bytes) -> None:
        numbers = data.replace(b"\0", b"")
        if numbers and self._loop_wakeup is not None:
            with suppress(OSError):
                os.write(self._loop_wakeup, numbers)
        for number in numbers:
            if number in self._stop_signals:
                seconds = LAST_SECONDS if self._signalled else self._timeout() + STOP_SECONDS
                self._signalled = True
                self._limit_to(seconds)

    def _end(self) -> None:
        running = ", ".join(_running()) or "unknown code"
        log.error("the process did not exit in time and is terminated; still running: %s", running)
        self._cleaning.set()
        self._cleaned.wait(CLEAN_UP_SECONDS)
        os._exit(ExitStatus.FORCED)

    def _clean(self) -> None:
        """Clean up after the time is over, in a thread, as this may hang."""
        self._cleaning.wait()
        try:
            self._clean_up()
        finally:
            self._cleaned.set()


def _running() -> list[str]:
    """Return the threads that still run, each with its current line."""
    frames = sys._current_frames()  # noqa: SLF001 - documented, for debuggers
    found = []
    for thread in threading.enumerate():
        frame = frames.get(thread.ident or 0)
        if frame is None or (thread.daemon and thread is not threading.main_thread()):
            continue
        code = frame.f_code
        if not (code.co_filename.endswith(_IDLE[0]) and code.co_name == _IDLE[1]):
            found.append(f"{thread.name} at {code.co_filename}:{frame.f_lineno} in {code.co_name}")
    return found
