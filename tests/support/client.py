"""A raw SMTP client: it sends exactly the bytes that a test gives it."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Any, NamedTuple, Self

PATIENCE = 20.0
"""Seconds to wait for a reply; a longer wait means that the server hangs."""

MAIL, RCPT = "MAIL FROM:<a@example.com>", "RCPT TO:<b@example.com>"


class Reply(NamedTuple):
    """A reply: its code, and its text lines without the code."""

    code: int
    lines: list[str]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


class Client:
    """One connection. Make it with :meth:`to`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def to(
        cls, address: Any, *, source: str | None = None, tls: ssl.SSLContext | None = None
    ) -> Self:
        """Connect to ``(host, port, ...)`` or a path, perhaps from another loopback address."""
        async with asyncio.timeout(PATIENCE):
            if isinstance(address, str):
                return cls(*await asyncio.open_unix_connection(address))
            host, port = address[0], address[1]
            host = {"::": "::1", "0.0.0.0": "127.0.0.1"}.get(host, host)
            if source is not None and "." in source:
                host = "127.0.0.1"
            local = (source, 0) if source else None
            return cls(
                *await asyncio.open_connection(
                    host,
                    port,
                    local_addr=local,
                    ssl=tls,
                    server_hostname="localhost" if tls else None,
                )
            )

    async def reply(self) -> Reply:
        """Read one reply, of one or more lines. Code 0 is the end of the stream."""
        lines: list[str] = []
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    line = (await self.reader.readline()).decode()
                except (ConnectionError, ssl.SSLError):
                    line = ""
                if not line:
                    # A test that polls in a loop must not block the event loop.
                    await asyncio.sleep(0)
                    return Reply(0, lines)
                lines.append(line[4:].rstrip("\r\n"))
                if line[3:4] != "-":
                    return Reply(int(line[:3]), lines)

    async def say(self, *commands: str) -> Reply:
        """Send commands in one packet; return the last one's reply."""
        self.send("".join(f"{command}\r\n" for command in commands))
        reply = Reply(0, [])
        for _ in commands:
            reply = await self.reply()
        return reply

    def send(self, text: str | bytes) -> None:
        self.writer.write(text.encode() if isinstance(text, str) else text)

    async def greet(self, name: str = "client.example") -> Reply:
        """Read the banner and send EHLO; return the reply to EHLO."""
        banner = await self.reply()
        assert banner.code == 220, banner
        return await self.say(f"EHLO {name}")

    async def deliver(
        self, body: str = "Subject: hello\r\n\r\nhello\r\n", *, to: str = "b@example.com"
    ) -> Reply:
        """Send one message, after greet(); return the reply to the final dot."""
        await self.say("MAIL FROM:<a@example.com>")
        await self.say(f"RCPT TO:<{to}>")
        reply = await self.say("DATA")
        if reply.code != 354:
            return reply
        self.send(body + ".\r\n")
        return await self.reply()

    async def start_tls(self, context: ssl.SSLContext) -> None:
        reply = await self.say("STARTTLS")
        assert reply.code == 220, reply
        async with asyncio.timeout(PATIENCE):
            await self.writer.start_tls(context, server_hostname="localhost")

    async def ended(self) -> bool:
        """Wait for the server to close the connection; return whether it did."""
        try:
            async with asyncio.timeout(PATIENCE):
                while await self.reader.read(4096):
                    pass
        except ConnectionError:
            pass
        return True

    def reset(self) -> None:
        """Close with a RST; ignore that the server may have closed the connection first."""
        sock = self.writer.get_extra_info("socket")
        if sock is not None and not self.writer.is_closing():
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        self.writer.transport.abort()

    async def close(self) -> None:
        self.writer.close()
        try:
            async with asyncio.timeout(PATIENCE):
                await self.writer.wait_closed()
        except (OSError, TimeoutError):
            pass

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def replies(client: Client, count: int) -> list[int]:
    return [(await client.reply()).code for _ in range(count)]


def code_and_enhanced(reply: Reply) -> tuple[int, str]:
    return reply.code, reply.text.partition(" ")[0]
