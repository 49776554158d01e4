"""Dovecot's authentication service of the tests' own: it says what it is told to say."""

from __future__ import annotations

import asyncio
import tempfile
from base64 import b64decode, b64encode
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

__all__ = ["OPENING", "AuthService", "auth_service"]

OPENING = (
    "VERSION\t1\t2\nMECH\tPLAIN\tplaintext\nMECH\tLOGIN\tplaintext\n"
    "MECH\tCRAM-MD5\tdictionary\tactive\nMECH\tANONYMOUS\tanonymous\nMECH\tSCRAM-SHA-256-PLUS\n"
    "SPID\t1\nCUID\t2\nCOOKIE\t00\nDONE\n"
)


@dataclass
class AuthService:
    """What the service is, and what it has heard.

    :ivar opening: what it says first
    :ivar answers: by the first word and the mechanism of a line: what it answers, with ``{id}``;
        None: nothing
    :ivar talk: what it does instead of all that
    :ivar heard: lines, as words
    :ivar open: connections now; :ivar connections: ever
    """

    opening: str = OPENING
    answers: dict[str, str | None] = field(default_factory=dict)
    talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]] | None = None
    heard: list[list[str]] = field(default_factory=list)
    connections: int = 0
    open: int = 0
    address: str = ""
    writers: set[asyncio.StreamWriter] = field(default_factory=set)

    def requests(self, command: str) -> list[list[str]]:
        return [words for words in self.heard if words[0] == command]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        self.writers.add(writer)
        try:
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                await (self.talk or self._talk)(reader, writer)
        finally:
            self.writers.discard(writer)
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
            self.open -= 1

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(self.opening.encode())
        while line := await reader.readline():
            words = line.decode().rstrip("\n").split("\t")
            self.heard.append(words)
            said = self._answer(words)
            if said:
                writer.write(said.format(id=words[1]).encode())

    def _answer(self, words: list[str]) -> str | None:
        if words[0] not in {"AUTH", "CONT"}:
            return None
        key = f"AUTH {words[2]}" if words[0] == "AUTH" else "CONT"
        if key in self.answers:
            return self.answers[key]
        response = words[-1].removeprefix("resp=") if words[0] == "AUTH" else words[2]
        user = b64decode(response).split(b"\0")[1].decode()
        if b64decode(response).endswith(b"\0secret"):
            return f"OK\t{{id}}\tuser={user}\n"
        return f"FAIL\t{{id}}\tuser={user}\n"

    def hang_up(self) -> None:
        for writer in list(self.writers):
            writer.transport.abort()


def challenge(text: bytes) -> str:
    return f"CONT\t{{id}}\t{b64encode(text).decode()}\n"


@asynccontextmanager
async def auth_service(service: AuthService, *, tcp: bool = False) -> AsyncIterator[AuthService]:
    """Run a service on a unix socket or on a port; afterwards no connection of it is open."""
    with tempfile.TemporaryDirectory(prefix="dovecot-auth-") as folder:
        if tcp:
            server = await asyncio.start_server(service.serve, "127.0.0.1", 0)
            service.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        else:
            path = Path(folder, "sock")
            server = await asyncio.start_unix_server(service.serve, path)
            service.address = f"unix:{path}"
        try:
            yield service
        finally:
            server.close()  # else uvloop waits for it for ever at the end of a test that failed
    async with asyncio.timeout(10):
        while service.open:
            await asyncio.sleep(0.001)
