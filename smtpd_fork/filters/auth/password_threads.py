"""PasswordThreads: separate threads for password hashes, which take tenths of a second each.

A flood of AUTH commands thus cannot occupy asyncio's default threads, which other handlers need.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

__all__ = ["PasswordThreads", "ThreadsBusyError"]

THREADS = 2
"""Concurrent hashes. A hash of Argon2 takes 64 MiB and about 0.1 s of CPU time."""

MOST_WAITING = 64
"""Maximum attempts that wait for a thread, one per client: about 4 s of work."""

MOST_OF_NETWORK = 16
"""Maximum attempts of one network, about a quarter of all, so that none fills the queue."""

T = TypeVar("T")


class ThreadsBusyError(Exception):
    """Too many attempts wait for a thread."""


class PasswordThreads:
    """Runs a function in one of a few threads."""

    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        self._free = THREADS + MOST_WAITING
        self._of_network: dict[str, int] = {}

    async def run(self, network: str, function: Callable[..., T], *args: object) -> T:
        """Call *function* in a thread, and return its result.

        A call that has begun is not interrupted by a cancellation; it occupies its thread until it
        returns.

        :param network: the network of the client; empty: only the total is limited
        :raises ThreadsBusyError: too many calls wait already
        """
        self._acquire(network)
        if self._executor is None:
            self._executor = ThreadPoolExecutor(THREADS, thread_name_prefix="passwords")
        try:
            future: Future[T] = self._executor.submit(function, *args)
        except BaseException:
            self._release(network)
            raise
        # The callback may run in the thread.
        future.add_done_callback(lambda _: self._release(network))
        return await asyncio.wrap_future(future)

    def _acquire(self, network: str) -> None:
        with self._lock:
            count = self._of_network.get(network, 0)
            if not self._free or (network and count >= MOST_OF_NETWORK):
                raise ThreadsBusyError
            self._free -= 1
            self._of_network[network] = count + 1

    def _release(self, network: str) -> None:
        with self._lock:
            self._free += 1
            self._of_network[network] -= 1
            if not self._of_network[network]:
                del self._of_network[network]

    def close(self) -> None:
        """Stop the threads when their current calls return; later calls get new threads."""
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
            self._executor = None
