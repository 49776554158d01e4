"""FaultProxy: a TCP proxy in front of a server, which breaks connections in several ways."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Coroutine

__all__ = ["FAULTS", "Fault", "FaultProxy"]

Fault: TypeAlias = Literal["none", "refuse", "hang", "reset", "close", "garbage", "cut"]

FAULTS: tuple[Fault, ...] = ("refuse", "hang", "reset", "close", "garbage", "cut")
"""The faults:

- ``refuse``: connections are refused
- ``hang``: connections are accepted, and nothing is sent
- ``reset``, ``close``: connections are reset, or closed, after the first byte of the client
- ``garbage``: clients receive invalid data
- ``cut``: data of the client is passed on, and the answers of the server are dropped"""

PIECE = 65536

RESET = b"\x01\0\0\0\0\0\0\0"
"""The value of SO_LINGER with which close(2) sends a RST (socket(7))."""

GARBAGE = b"\xff\x00\r\n+garbage " * 1000 + b"\r\n"


class FaultProxy:
    """A proxy that passes connections on to a server, or breaks them.

    ::

        async with FaultProxy("127.0.0.1", 6379) as proxy:
            sink = MySink(port=proxy.port)
            await proxy.set_fault("reset")

    :param host: the host of the server
    :param port: the port of the server
    :ivar port: the port of the proxy, on 127.0.0.1
    """

    def __init__(self, host: str, port: int) -> None:
        self._server_address = host, port
        self._fault: Fault = "none"
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    async def set_fault(self, fault: Fault) -> None:
        """Close all connections, and handle new connections with *fault* from now on."""
        self._fault = fault
        await self._stop()
        if fault != "refuse":
            self._listen()

    async def __aenter__(self) -> Self:
        self._listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop()

    def _listen(self) -> None:
        listener = socket.create_server(("127.0.0.1", self.port))
        listener.setblocking(False)
        self.port = listener.getsockname()[1]
        self._start(self._accept(listener))

    def _start(self, doing: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(doing)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _stop(self) -> None:
        """Close the listening socket and all connections."""
        await asyncio.sleep(0)  # a task that is cancelled before its first step closes no socket
        while tasks := list(self._tasks):
            for each in tasks:
                each.cancel()
            await asyncio.wait(tasks)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with listener:
            while True:
                client, _ = await loop.sock_accept(listener)
                client.setblocking(False)
                self._start(self._serve(client))
                await asyncio.sleep(0)

    async def _serve(self, client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with client, suppress(OSError):
            match self._fault:
                case "none" | "cut":
                    await self._pass_on(client)
                case "hang":
                    await asyncio.Event().wait()
                case "garbage":
                    await loop.sock_sendall(client, GARBAGE)
                    while await loop.sock_recv(client, PIECE):
                        await loop.sock_sendall(client, GARBAGE)
                case _:
                    await loop.sock_recv(client, 1)
                    if self._fault == "reset":
                        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)

    async def _pass_on(self, client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with socket.socket() as server:
            server.setblocking(False)
            await loop.sock_connect(server, self._server_address)
            ways = [
                loop.create_task(_copy(client, server, cut=False)),
                loop.create_task(_copy(server, client, cut=self._fault == "cut")),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)


async def _copy(source: socket.socket, target: socket.socket, *, cut: bool) -> None:
    """Copy a stream to its end, or with *cut* read and drop it."""
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(source, PIECE):
        if not cut:
            await loop.sock_sendall(target, data)
