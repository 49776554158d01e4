"""Probe a server at the start of the daemon, before its event loop runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

__all__ = ["PROBE_SECONDS", "probe_in_thread"]

PROBE_SECONDS = 5.0
"""Timeout of a probe: a server that does not answer delays the start by no more."""


def probe_in_thread(probe: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a coroutine in an event loop of its own, and wait for its end.

    :raises TimeoutError: the coroutine did not end within the timeout
    """

    async def probe_with_timeout() -> None:
        async with asyncio.timeout(PROBE_SECONDS):
            await probe()

    # In another thread, because an event loop may already run in this one.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, probe_with_timeout()).result()
