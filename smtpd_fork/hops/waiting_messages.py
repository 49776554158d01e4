"""WaitingMessages: a queue of messages that wait for a connection to a next hop."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from smtpd_fork.hops.errors import HopDownError

if TYPE_CHECKING:
    from collections.abc import Callable

    from smtpd_fork.hops.connection import HopConnection
    from smtpd_fork.hops.errors import HopError

__all__ = ["WaitingMessages"]


class WaitingMessages:
    """A queue of messages that wait for a connection.

    :param unused: called with the result of a waiter that was cancelled after it got its result
    """

    def __init__(self, unused: Callable[[HopConnection | None], None]) -> None:
        self._unused = unused
        self._waiting: deque[asyncio.Future[HopConnection | None]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    async def wait(self, until: float) -> HopConnection | None:
        """Wait for a call of :meth:`serve`, and return its argument.

        :param until: the deadline, in the time of the loop
        :raises TimeoutError: the deadline has passed
        :raises HopDownError: the hop is down
        """
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[HopConnection | None] = loop.create_future()
        self._waiting.append(waiter)
        try:
            async with asyncio.timeout_at(until):
                return await waiter
        except BaseException:
            self._remove(waiter)
            raise

    def _remove(self, waiter: asyncio.Future[HopConnection | None]) -> None:
        with suppress(ValueError):
            self._waiting.remove(waiter)
        if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
            self._unused(waiter.result())

    def serve(self, connection: HopConnection | None) -> bool:
        """Give a connection to the first waiting message; return whether a message was waiting.

        :param connection: None: the message may make another connection
        """
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(connection)
                return True
        return False

    def fail(self, error: HopError) -> None:
        """Raise HopDownError in all waiters."""
        waiting, self._waiting = self._waiting, deque()
        for waiter in waiting:
            if not waiter.done():
                waiter.set_exception(HopDownError(error.reason, error.reply))

    def cancel(self) -> None:
        """Cancel all waiters."""
        for waiter in self._waiting:
            waiter.cancel()
