"""A server in the test's own loop."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from smtpd_fork import Server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@asynccontextmanager
async def serve(handler: Any, **options: Any) -> AsyncIterator[Server]:
    """Serve on a free port; afterwards the gate's counts must be exactly 0."""
    options.setdefault("listen", ["127.0.0.1:0"])
    options.setdefault("hostname", "mx.example.com")
    options.setdefault("shutdown_timeout", 5)
    async with Server(handler, **options) as server:
        yield server
        assert server.audit() == []
    assert server.gate.count == 0
    assert server.gate.sources == {}
    assert server.sessions == 0
