"""Slots: a semaphore for several event loops, with a timeout."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from contextlib import suppress

__all__ = ["Slots"]


class Slots:
    """A number of slots. Tasks of several event loops may wait for one.

    :param count: the number of slots
    """

    def __init__(self, count: int) -> None:
        self._free = count
        self._lock = threading.Lock()
        self._waiting: deque[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = deque()

    async def acquire(self, seconds: float) -> bool:
        """Acquire a slot; return False if none became free within *seconds*."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        with self._lock:
            if self._free:
                self._free -= 1
                return True
            self._waiting.append((loop, waiter))
        try:
            await asyncio.wait({waiter}, timeout=seconds)
        except asyncio.CancelledError:
            if not self._withdraw(loop, waiter):
                self.release()
            raise
        return not self._withdraw(loop, waiter)

    def _withdraw(self, loop: asyncio.AbstractEventLoop, waiter: asyncio.Future[None]) -> bool:
        """Remove a waiter; return False if it has been given a slot already."""
        with self._lock, suppress(ValueError):
            self._waiting.remove((loop, waiter))
            return True
        return False

    def release(self) -> None:
        """Release a slot; may be called in any thread."""
        while True:
            with self._lock:
                if not self._waiting:
                    self._free += 1
                    return
                loop, waiter = self._waiting.popleft()
            with suppress(RuntimeError):  # the loop is closed: try the next waiter
                loop.call_soon_threadsafe(_grant, waiter)
                return


def _grant(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
