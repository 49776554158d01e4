"""Look: asks a server something at the start, before there is an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

__all__ = ["LOOK_SECONDS", "look_in_thread"]

LOOK_SECONDS = 5.0
"""The start waits no longer for a server that does not answer."""


def look_in_thread(look: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a coroutine in an event loop of its own, and wait for it.

    :raises TimeoutError: it took too long
    """

    async def look_in_time() -> None:
        async with asyncio.timeout(LOOK_SECONDS):
            await look()

    with ThreadPoolExecutor(1) as thread:  # a loop may run in this one
        thread.submit(asyncio.run, look_in_time()).result()
