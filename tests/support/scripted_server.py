"""A fake server on a unix socket or a port; it counts its connections."""

from __future__ import annotations

import asyncio
import tempfile
from abc import ABC, abstractmethod
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

__all__ = ["ScriptedServer", "listening"]


@dataclass(kw_only=True)
class ScriptedServer(ABC):
    """A server; a subclass implements its protocol.

    :ivar talk: a function that serves a connection instead
    :ivar connections: number of all connections
    :ivar open: number of open connections
    :ivar writers: of the open connections
    """

    talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]] | None = None
    connections: int = 0
    open: int = 0
    address: str = ""
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    @abstractmethod
    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        self.writers.append(writer)
        try:
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                await (self.talk or self._talk)(reader, writer)
        finally:
            self.writers.remove(writer)
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
            self.open -= 1

    def hang_up(self) -> None:
        """Close all connections, as a server does after its timeout."""
        for writer in self.writers:
            writer.close()


ServerT = TypeVar("ServerT", bound=ScriptedServer)


@asynccontextmanager
async def listening(server: ServerT, *, tcp: bool = False) -> AsyncIterator[ServerT]:
    """Run a server on a unix socket or on a port; at the end all its connections are closed."""
    with tempfile.TemporaryDirectory(prefix="scripted-server-") as directory:
        if tcp:
            listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
            server.address = f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        else:
            path = Path(directory, "sock")
            listener = await asyncio.start_unix_server(server.serve, path)
            server.address = f"unix:{path}"
        try:
            yield server
        finally:
            listener.close()  # otherwise uvloop waits forever for it after a failed test
    async with asyncio.timeout(10):
        while server.open:
            await asyncio.sleep(0.001)
