"""PasswordThreads: threads of their own for hashes, which take tenths of a second each.

Those of asyncio are for all that blocks: a flood of AUTH does not take them from other handlers.
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
"""Hashes at once. A hash of Argon2 takes 64 MiB and about 0.1 s of a core."""

MOST_WAITING = 64
"""Attempts that wait for a thread, one of a client: about 4 s."""

MOST_OF_NETWORK = 16
"""Attempts at once of one network, a quarter of them: no /24 and no /48 shuts the others out."""

T = TypeVar("T")


class ThreadsBusyError(Exception):
    """Too many attempts wait."""


class PasswordThreads:
    """Runs a function in one of a few threads."""

    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        self._free = THREADS + MOST_WAITING
        self._of_network: dict[str, int] = {}

    async def run(self, network: str, function: Callable[..., T], *args: object) -> T:
        """Return what *function* returns.

        One that has begun goes on when this is cancelled, and takes its thread as long.

        :param network: of the client; empty: it is not counted by it
        :raises ThreadsBusyError: too many wait already
        """
        self._take(network)
        if self._executor is None:
            self._executor = ThreadPoolExecutor(THREADS, thread_name_prefix="passwords")
        try:
            future: Future[T] = self._executor.submit(function, *args)
        except BaseException:
            self._give_back(network)
            raise
        future.add_done_callback(lambda _: self._give_back(network))  # in a thread, perhaps
        return await asyncio.wrap_future(future)

    def _take(self, network: str) -> None:
        with self._lock:
            count = self._of_network.get(network, 0)
            if not self._free or (network and count >= MOST_OF_NETWORK):
                raise ThreadsBusyError
            self._free -= 1
            self._of_network[network] = count + 1

    def _give_back(self, network: str) -> None:
        with self._lock:
            self._free += 1
            self._of_network[network] -= 1
            if not self._of_network[network]:
                del self._of_network[network]

    def close(self) -> None:
        """End the threads, as soon as they have done what they do; later attempts have others."""
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
            self._executor = None
