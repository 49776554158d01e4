"""A handler that awaits for each recipient, as a handler with a database query does.

It acquires one of the 20 connections of a pool, waiting for a free one if necessary, and then waits
for one iteration of the event loop, in place of the query.
"""

from __future__ import annotations

import asyncio
from typing import Any

__all__ = ["Pool"]

CONNECTIONS = 20


class Pool:
    """Accepts every recipient, after an iteration of the loop."""

    def __init__(self) -> None:
        self._pool = asyncio.Semaphore(CONNECTIONS)

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's name
        self, _server: Any, _session: Any, envelope: Any, address: str, options: list[str]
    ) -> str:
        """Accept a recipient once a connection of the pool has "answered" (aiosmtpd's hook)."""
        async with self._pool:
            await asyncio.sleep(0)
        envelope.rcpt_tos.append(address)
        envelope.rcpt_options.extend(options)
        return "250 2.1.5 OK"
