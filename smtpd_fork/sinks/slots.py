"""Slots: a bounded number of runs at a time, and a bounded wait for one of them."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from contextlib import suppress

__all__ = ["Slots"]


class Slots:
    """A number of slots. Several event loops may wait for one.

    :param count: how many there are
    """

    def __init__(self, count: int) -> None:
        self._free = count
        self._lock = threading.Lock()
        self._waiting: deque[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = deque()

    async def acquire(self, seconds: float) -> bool:
        """Take a slot; return False if none became free in time."""
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        with self._lock:
            if self._free:
                self._free -= 1
                return True
            self._waiting.append((loop, turn))
        try:
            await asyncio.wait({turn}, timeout=seconds)
        except asyncio.CancelledError:
            if not self._withdraw(loop, turn):
                self.release()
            raise
        return not self._withdraw(loop, turn)

    def _withdraw(self, loop: asyncio.AbstractEventLoop, turn: asyncio.Future[None]) -> bool:
        """Wait no longer; return False if the slot has been given already."""
        with self._lock, suppress(ValueError):
            self._waiting.remove((loop, turn))
            return True
        return False

    def release(self) -> None:
        """Give a slot back; any thread may do so."""
        while True:
            with self._lock:
                if not self._waiting:
                    self._free += 1
                    return
                loop, turn = self._waiting.popleft()
            with suppress(RuntimeError):  # the loop is closed: nobody waits in it
                loop.call_soon_threadsafe(_give, turn)
                return


def _give(turn: asyncio.Future[None]) -> None:
    if not turn.done():
        turn.set_result(None)
