"""A nats-server for one test, with JetStream."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import TYPE_CHECKING, Any

import nats

from support.peer_server import PeerServer
from support.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from nats.js import JetStreamContext


class NatsServer(PeerServer):
    """A server with JetStream.

    :param settings: additional configuration
    :ivar url: without a user
    """

    def __init__(self, settings: str = "", *, login: str = "") -> None:
        super().__init__("nats-server")
        self.port = free_port("127.0.0.1")
        self.url = f"nats://127.0.0.1:{self.port}"
        self._login = login
        store = json.dumps(str(self.directory))
        (self.directory / "conf").write_text(
            f"listen: 127.0.0.1:{self.port}\njetstream {{ store_dir: {store} }}\n{settings}\n"
        )

    def _arguments(self) -> list[str]:
        return ["-c", str(self.directory / "conf")]

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port)) as sock:
                return sock.recv(1) == b"I"
        except OSError:
            return False

    async def ask(self, what: Callable[[JetStreamContext], Awaitable[Any]]) -> Any:
        """Return the reply to a request of JetStream."""
        url = self.url.replace("://", f"://{self._login}")
        client = await nats.connect(url, allow_reconnect=False)
        try:
            return await what(client.jetstream())
        finally:
            await client.close()

    async def add_stream(self, **config: Any) -> None:
        facts = {"name": "MAIL", "subjects": ["mail"], "duplicate_window": 3600, **config}
        await self.ask(lambda stream: stream.add_stream(**facts))

    async def new_stream(self, **config: Any) -> None:
        """Create the stream, and replace an existing one."""
        with_it = [each.config.name for each in await self.ask(lambda js: js.streams_info())]
        for name in with_it:
            await self.ask(lambda js, name=name: js.delete_stream(name))  # type: ignore[misc]
        await self.add_stream(**config)

    async def messages(self, stream: str = "MAIL") -> list[Any]:
        """Return all messages of a stream: each has ``data`` and ``headers``."""

        async def read(jetstream: JetStreamContext) -> list[Any]:
            state = (await jetstream.stream_info(stream)).state
            numbers = range(state.first_seq, state.last_seq + 1)
            return [await jetstream.get_msg(stream, number) for number in numbers]

        found: list[Any] = await self.ask(read)
        return found


def run(awaitable: Any) -> Any:
    """Return the result, in a test that is not asynchronous."""
    return asyncio.run(awaitable)
