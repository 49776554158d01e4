"""HandlerChains: the chains of handlers that older sessions still have."""

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
"""How long handlers may take to close, when the last message has ended or was cut."""


class HandlerChains:
    """The chains that new sessions do not get any more."""

    def __init__(self) -> None:
        self._retired: dict[Chain, asyncio.Task[None]] = {}

    def retire(self, chain: Chain, sessions: Sessions) -> None:
        """Close *chain* when none of *sessions* has it any more."""
        self._retired[chain] = asyncio.ensure_future(self._retire(chain, sessions))

    async def _retire(self, chain: Chain, sessions: Sessions) -> None:
        await sessions.outlived(chain)
        del self._retired[chain]
        await chain.close()

    async def close(self, current: Chain) -> None:
        """Close all of them, and *current*: there are no sessions any more.

        One whose thread hangs does not hold up the stop.
        """
        closing = asyncio.ensure_future(self._close(current))
        await asyncio.wait([closing], timeout=CLOSE_SECONDS)
        if closing.done():
            closing.result()
        else:
            closing.cancel()
            log.error(
                "the handlers have not closed in %g s, and are left as they are", CLOSE_SECONDS
            )

    async def _close(self, current: Chain) -> None:
        for chain, task in list(self._retired.items()):
            task.cancel()
            await chain.close()
        self._retired.clear()
        await current.close()
