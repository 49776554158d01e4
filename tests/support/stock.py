"""Bugs of stock aiosmtpd that smtpd_fork.smtp.SMTP does not have, each shown with both.

There is one probe for each bug, with the result of stock aiosmtpd and that of smtpd-fork. If a test
with the stock result fails, aiosmtpd has fixed the bug; if one with the other result fails,
smtpd-fork has it.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import aiosmtpd.smtp
from aiosmtpd.smtp import MISSING

import smtpd_fork.smtp
from support.client import Client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from support.tls import Certificates

STOCK, OURS = aiosmtpd.smtp.SMTP, smtpd_fork.smtp.SMTP

BEGIN = ("MAIL FROM:<a@example.com>", "RCPT TO:<b@example.com>", "DATA")


class Keep:
    """Accepts every message, and stores the arguments of its hooks."""

    supports_dsn = supports_binarymime = True

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.senders: list[str] = []
        self.params: list[Any] = []

    async def handle_MAIL(self, server: Any, session: Any, envelope: Any, *args: Any) -> Any:
        self.senders.append(args[0])
        self.params.append(getattr(envelope, "mail_params", args[1]))
        return MISSING

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.messages.append(envelope.content)
        return "250 OK"


class Bench:
    """The environment of a probe: one of the two session classes, and certificates.

    :ivar sessions: all sessions, oldest first
    """

    def __init__(self, engine: type[aiosmtpd.smtp.SMTP], certificates: Certificates) -> None:
        self.engine = engine
        self.certificates = certificates
        self.sessions: list[Any] = []

    @asynccontextmanager
    async def client(
        self, handler: Any = None, *, tls: bool = False, **options: Any
    ) -> AsyncIterator[Client]:
        """Serve, and connect a client; at the end no session is left."""
        loop = asyncio.get_running_loop()
        options.setdefault("auth_require_tls", False)

        def session() -> Any:
            made = self.engine(handler or Keep(), hostname="mx.example.com", **options)
            self.sessions.append(made)
            return made

        context = self.certificates.server if tls else None
        server = await loop.create_server(session, "127.0.0.1", 0, ssl=context)
        trust = self.certificates.client if tls else None
        try:
            self.address = server.sockets[0].getsockname()
            async with await Client.to(self.address, tls=trust) as client:
                yield client
        finally:
            server.close()
            await self._end_sessions()

    async def _end_sessions(self) -> None:
        for session in self.sessions:
            if session.transport is not None:
                session.transport.abort()
            ended = session._handler_coroutine
            if not isinstance(session, OURS):
                session._handler_coroutine.cancel()
            with suppress(asyncio.CancelledError):
                await ended


async def codes(client: Client, *commands: str) -> list[int]:
    return [(await client.say(command)).code for command in commands]


class Fault(NamedTuple):
    """A probe, and its result with each session class."""

    probe: Callable[[Bench], Awaitable[Any]]
    stock: object
    ours: object
