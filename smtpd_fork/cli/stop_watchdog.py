"""StopWatchdog: ends a stopping process, whatever runs in it.

A handler can block the loop (``time.sleep()`` in a hook), hang in a thread that Python waits for
at its end, or ignore that it is cancelled. None of this may keep the process: a thread of its own
watches the stop. It hears of signals by the loop's wake-up descriptor (signal.set_wakeup_fd), into
which Python writes them even while the loop is blocked, and passes on what it reads. When the time
is over it logs what still runs, cleans up as far as that can be done, and ends the process.

Code that holds Python's lock (an extension in C that never returns) stops this thread as well;
then only SIGKILL helps.
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
"""After --shutdown-timeout: for farewells, the handlers' close, and a new process to be ended."""

LAST_SECONDS = 3.0
"""After a second signal, and for tasks and threads that are left when the server has stopped."""

CLEAN_UP_SECONDS = 10.0
"""For files, log and cleanup process, each with a limit of its own, and for Python's end."""

_IDLE = ("concurrent/futures/thread.py", "_worker")
"""Where a thread of an executor waits for work: file and function."""


class StopWatchdog:
    """Watches the stop of the process.

    :param timeout: returns ``--shutdown-timeout``, in seconds, as it is now
    :param clean_up: removes what must not be left; called in another thread than usually
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
        # Both from the beginning: from 3.12 on Python starts no thread at its end.
        for target, name in ((self._watch, "ending"), (self._clean, "cleaning")):
            threading.Thread(target=target, name=name, daemon=True).start()

    def listen(self, stop_signals: Collection[int]) -> None:
        """Hear of signals, before the loop does; in the main thread, once the loop handles them.

        A loop that runs again has made itself the first: then this is to be called again.
        """
        self._stop_signals = stop_signals
        wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        if wakeup != self._write:
            before, self._loop_wakeup = self._loop_wakeup, os.dup(wakeup)  # the loop closes its own
            if before is not None:
                os.close(before)

    def server_stops(self) -> None:
        """Take note that the stop has begun, with or without a signal."""
        self._within(self._timeout() + STOP_SECONDS)

    def server_has_stopped(self) -> None:
        """Take note that only tasks and threads are left, which are not needed."""
        self._within(LAST_SECONDS)

    def loop_has_ended(self) -> None:
        """Take note that the loop is closed; from now on signals are heard without it."""
        for number in self._stop_signals:
            signal.signal(number, self._again)
        self._deadline = math.inf
        self._within(CLEAN_UP_SECONDS)

    def _within(self, seconds: float) -> None:
        self._deadline = min(self._deadline, time.monotonic() + seconds)
        with suppress(BlockingIOError):
            os.write(self._write, b"\0")

    def _again(self, number: int, frame: FrameType | None) -> None:
        self._within(0)

    def _watch(self) -> None:
        poll = select.poll()
        poll.register(self._read, select.POLLIN)
        while (left := self._deadline - time.monotonic()) > 0:
            poll.poll(None if left == math.inf else left * 1000)
            with suppress(BlockingIOError):
                self._heard(os.read(self._read, 4096))
        self._end()

    def _heard(self, data: bytes) -> None:
        numbers = data.replace(b"\0", b"")
        if numbers and self._loop_wakeup is not None:
            with suppress(OSError):
                os.write(self._loop_wakeup, numbers)
        for number in numbers:
            if number in self._stop_signals:
                seconds = LAST_SECONDS if self._signalled else self._timeout() + STOP_SECONDS
                self._signalled = True
                self._within(seconds)

    def _end(self) -> None:
        running = ", ".join(_running()) or "nothing that is known"
        log.error("the process did not exit in time and is terminated; still running: %s", running)
        self._cleaning.set()
        self._cleaned.wait(CLEAN_UP_SECONDS)
        os._exit(ExitStatus.CUT)

    def _clean(self) -> None:
        """Clean up when it is time to, in a thread that may hang."""
        self._cleaning.wait()
        try:
            self._clean_up()
        finally:
            self._cleaned.set()


def _running() -> list[str]:
    """Return which threads run, and where they are."""
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
