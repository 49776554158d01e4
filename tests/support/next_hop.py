"""A fake next hop with errors that a test selects: a small SMTP or LMTP server."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, TypeAlias

from smtpd_fork.hops.connection import Phase
from smtpd_fork.hops.peer_status import PeerStatus
from support.server import until
from support.sinks import open_sockets

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from smtpd_fork.sinks.next_hop import NextHop


class Fault(Enum):
    """Actions of a hop in place of a reply."""

    SILENT = auto()
    CLOSE = auto()
    RESET = auto()
    ENDLESS = auto()


Answer: TypeAlias = str | bytes | Fault

_OF_A_HOP = ("Hop._serve", "Sweep._check")

OFFERS = ("PIPELINING", "8BITMIME", "SIZE", "ENHANCEDSTATUSCODES")


class Hop:
    """A server whose replies are data.

    :ivar answers: by verb, or by a whole command; ``GREETING``, and ``END`` for a message, which in
        LMTP may be ``END ADDRESS``. After the last element of a list the default reply follows
    :ivar messages: accepted messages: sender, recipients, content
    :ivar commands: received commands, in order
    :ivar greeted: number of connections
    """

    def __init__(self, *, lmtp: bool = False, offers: tuple[str, ...] = OFFERS) -> None:
        self.lmtp = lmtp
        self.offers = offers
        self.answers: dict[str, Answer | list[Answer]] = {}
        self.messages: list[tuple[str, list[str], bytes]] = []
        self.commands: list[str] = []
        self.greeted = 0
        self.read_content = True
        self.writers: set[asyncio.StreamWriter] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.port = 0
        self._server: asyncio.Server | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Accept no more connections, and close the open ones."""
        assert self._server is not None
        self._server.close()
        for writer in list(self.writers):
            writer.transport.abort()
        for task in list(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self._server.wait_closed()

    def say(self, data: bytes) -> None:
        """Send something unasked on all connections."""
        for writer in self.writers:
            writer.write(data)

    def answer(self, *keys: str, usual: str) -> Answer:
        for key in keys:
            given = self.answers.get(key)
            if isinstance(given, list):
                if given:
                    return given.pop(0)
            elif given is not None:
                return given
        return usual

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        self.writers.add(writer)
        self.greeted += 1
        try:
            with suppress(ConnectionError, asyncio.CancelledError, asyncio.IncompleteReadError):
                await self._talk(reader, writer)
        finally:
            self.writers.discard(writer)
            self.tasks.discard(task)
            writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sender, recipients = "", list[str]()
        await self._put(writer, self.answer("GREETING", usual="220 hop.example"))
        while line := (await reader.readuntil(b"\r\n")).decode("utf-8", "replace").rstrip("\r\n"):
            self.commands.append(line)
            verb = line[:4].upper()
            usual = {
                "EHLO": "\r\n".join(f"250-{each}" for each in ("hop", *self.offers)) + "\r\n250 OK",
                "DATA": "354 Go on" if recipients else "503 5.5.1 No recipients",
                "RCPT": "250 2.1.5 OK" if sender else "503 5.5.1 No sender",
                "QUIT": "221 2.0.0 Bye",
            }
            usual["LHLO"] = usual["EHLO"]
            answer = self.answer(line, verb, usual=usual.get(verb, "250 2.0.0 OK"))
            await self._put(writer, answer)
            good = isinstance(answer, str) and answer[0] == "2"
            if verb == "MAIL" and good:
                sender, recipients = line, []
            elif verb == "RCPT" and good:
                recipients.append(line.partition("<")[2].partition(">")[0])
            elif verb == "QUIT":
                return
            elif verb == "DATA" and answer == "354 Go on":
                if not self.read_content:
                    await asyncio.Event().wait()
                content = await read_content(reader)
                self.messages.append((sender, recipients, content))
                for each in recipients if self.lmtp else recipients[:1]:
                    await self._put(writer, self.answer(f"END {each}", "END", usual="250 2.0.0 OK"))
                sender, recipients = "", []
            elif verb == "RSET":
                sender, recipients = "", []

    async def _put(self, writer: asyncio.StreamWriter, answer: Answer) -> None:
        if answer is Fault.SILENT:
            await asyncio.Event().wait()
        elif answer is Fault.CLOSE:
            raise ConnectionAbortedError
        elif answer is Fault.RESET:
            writer.transport.abort()
            raise ConnectionAbortedError
        elif answer is Fault.ENDLESS:
            while True:
                writer.write(b"250-more\r\n" * 1000)
                await writer.drain()
        else:
            writer.write(answer if isinstance(answer, bytes) else f"{answer}\r\n".encode())
            await writer.drain()


async def read_content(reader: asyncio.StreamReader) -> bytes:
    """Return a message as it was before its transfer."""
    lines = []
    while (line := await reader.readuntil(b"\r\n")) != b".\r\n":
        lines.append(line.removeprefix(b"."))
    return b"".join(lines)


@asynccontextmanager
async def a_hop(*, lmtp: bool = False, offers: tuple[str, ...] = OFFERS) -> AsyncIterator[Hop]:
    """Serve; at the end no socket is left, of the hop or of its client."""
    sockets = open_sockets()
    hop = Hop(lmtp=lmtp, offers=offers)
    await hop.start()
    try:
        yield hop
    finally:
        await hop.stop()
    await until(lambda: open_sockets() <= sockets)


@asynccontextmanager
async def closing(sink: NextHop) -> AsyncIterator[NextHop]:
    """Use a sink; at the end no connection has an unknown state, and nothing of it is left."""
    before = asyncio.all_tasks()
    try:
        yield sink
        for connection in sink._pool._open if sink._pool else ():
            assert connection.phase in {Phase.READY, Phase.RESETTING}
    finally:
        await sink.close()
    await until(lambda: ours(asyncio.all_tasks()) <= ours(before))
    assert sink.status == PeerStatus()


def phases(sink: NextHop) -> set[Phase]:
    """Return the phases of a sink's connections."""
    assert sink._pool is not None
    return {each.phase for each in sink._pool._open}


def ours(tasks: set[asyncio.Task[Any]]) -> set[asyncio.Task[Any]]:
    """Return the tasks that belong neither to a next hop of the tests nor to the server."""
    return {task for task in tasks if not any(name in repr(task) for name in _OF_A_HOP)}
