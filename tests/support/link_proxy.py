"""A proxy that delays or drops data without closing a connection, as a network can do."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from pathlib import Path


class LinkProxy:
    """Forwards connections to a unix socket.

    :ivar port: of the proxy, on 127.0.0.1
    :ivar delay: additional seconds of each answer
    :ivar drops: whether all data is dropped
    :ivar requests: pieces of data that were sent to the server
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tasks: set[asyncio.Task[None]] = set()
        self.delay = 0.0
        self.drops = False
        self.requests = 0
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        there: asyncio.StreamWriter | None = None
        with suppress(OSError, asyncio.CancelledError):
            try:
                answers, there = await asyncio.open_unix_connection(self._path)
                ways = (self._copy(reader, there, False), self._copy(answers, writer, True))
                await asyncio.gather(*ways)
            finally:
                for each in (writer, there):
                    if each is not None:
                        each.transport.abort()

    async def _copy(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, answers: bool
    ) -> None:
        while data := await source.read(1 << 16):
            if answers:
                await asyncio.sleep(self.delay)
            else:
                self.requests += 1
            if not self.drops:
                target.write(data)
                await target.drain()
        raise ConnectionError  # The other direction ends as well.
