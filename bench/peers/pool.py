"""A handler that awaits, as one does that asks a database for each recipient.

It takes one of 20 connections of a pool, or waits for one, and then for one turn of the loop, which
stands for the answer.
"""

from __future__ import annotations

import asyncio
from typing import Any

__all__ = ["Pool"]

CONNECTIONS = 20


class Pool:
    """Takes every recipient, after a moment."""

    def __init__(self) -> None:
        self._pool = asyncio.Semaphore(CONNECTIONS)

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's name
        self, _server: Any, _session: Any, envelope: Any, address: str, options: list[str]
    ) -> str:
        """Take a recipient once the database would have answered (aiosmtpd's hook)."""
        async with self._pool:
            await asyncio.sleep(0)
        envelope.rcpt_tos.append(address)
        envelope.rcpt_options.extend(options)
        return "250 2.1.5 OK"
