"""HandlerChains: closes the chains of handlers that a reload has replaced."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smtpd_fork.handlers import Chain
    from smtpd_fork.server.sessions import Sessions

__all__ = ["HandlerChains"]

log = logging.getLogger("smtpd_fork.server")

CLOSE_SECONDS = 5.0
"""Time limit for closing the handlers, after the last message has ended or was cut."""

CANCEL_SECONDS = 1.0
"""Time limit for a cancelled task to end."""


class HandlerChains:
    """The chains of handlers that new sessions do not use any more."""

    def __init__(self) -> None:
        self._retired: dict[Chain, asyncio.Task[None]] = {}  # still used by sessions
        self._closing: set[asyncio.Task[None]] = set()  # not used any more

    def retire(self, chain: Chain, sessions: Sessions) -> None:
        """Close *chain* when none of *sessions* uses it any more."""
        self._retired[chain] = asyncio.ensure_future(self._retire(chain, sessions))

    async def _retire(self, chain: Chain, sessions: Sessions) -> None:
        await sessions.wait_until_unused(chain)
        task = self._retired.pop(chain)
        self._closing.add(task)
        try:
            await chain.close()
        finally:
            self._closing.discard(task)

    async def close(self, current: Chain) -> None:
        """Close all chains, and *current*, after the last session has ended.

        A handler that hangs does not block the stop.
        """
        for task in self._retired.values():
            task.cancel()
        left = {asyncio.ensure_future(chain.close()) for chain in (*self._retired, current)}
        self._retired.clear()
        left |= self._closing
        closed, hanging = await asyncio.wait(left, timeout=CLOSE_SECONDS)
        if hanging:
            log.error(
                "the handlers did not close within %g s, continuing without them", CLOSE_SECONDS
            )
            for task in hanging:
                task.cancel()
            await asyncio.wait(hanging, timeout=CANCEL_SECONDS)
        for task in closed:
            task.result()
