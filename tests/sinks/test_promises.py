"""Every built-in sink answers 250 only for safe messages, whatever happens to its server."""

from __future__ import annotations

import mailbox
import re
from contextlib import AsyncExitStack, closing
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from support.http_app import App, running
from support.nats_server import NatsServer
from support.redis_server import DURABLE, RedisServer
from support.s3_server import ACCESS, S3Server

from smtpd_fork import Server
from smtpd_fork.sinks.lmtp import Lmtp
from smtpd_fork.sinks.mbox import Mbox
from smtpd_fork.sinks.nats import Nats
from smtpd_fork.sinks.pipe import Pipe
from smtpd_fork.sinks.redis import Redis
from smtpd_fork.sinks.relay import Relay
from smtpd_fork.sinks.s3 import S3
from smtpd_fork.sinks.webhook import Webhook
from smtpd_fork.testing import MESSAGES, FaultProxy, Mailbox, check_sink

if TYPE_CHECKING:
    from pathlib import Path

LIMIT = 0.25
"""Seconds for a message while the server is broken."""

LINES = {name: text for name, text in MESSAGES.items() if "control" not in name}


def unquoted(content: bytes) -> bytes:
    """Return a message of an mbox without the quoting of lines "From " (mboxrd)."""
    return re.sub(rb"^>(>*From )", rb"\1", content, flags=re.MULTILINE)


async def test_mbox(tmp_path: Path) -> None:
    path = tmp_path / "mbox"

    def stored() -> list[bytes]:
        with closing(mailbox.mbox(path)) as box:
            return [unquoted(box.get_bytes(key)) for key in box.iterkeys()]

    await check_sink(lambda: Mbox(path), stored, messages=LINES.values())


async def test_pipe(tmp_path: Path) -> None:
    script = tmp_path / "store"
    script.write_text(
        '#!/bin/sh\nset -e\ncat > "$0.$QUEUE_ID.new"\nmv "$0.$QUEUE_ID.new" "$0.$QUEUE_ID"\n'
    )
    script.chmod(0o700)

    def stored() -> list[bytes]:
        return [path.read_bytes() for path in tmp_path.glob("store.test-*")]

    await check_sink(lambda: Pipe(str(script)), stored)


@pytest.mark.parametrize("kind", [Lmtp, pytest.param(Relay, marks=pytest.mark.peers)])
async def test_next_hop(kind: Any) -> None:
    box = Mailbox()
    scheme = "lmtp:" if kind is Lmtp else ""
    async with Server(box, listen=[f"{scheme}127.0.0.1:0"], shutdown_timeout=0.5) as server:
        async with FaultProxy("127.0.0.1", server.port) as proxy:
            await check_sink(
                lambda: kind(f"127.0.0.1:{proxy.port}"),
                lambda: [message.content for message in box.messages],
                proxy=proxy,
                time_limit=LIMIT,
            )


async def test_webhook() -> None:
    app = App()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(running(app))
        port = urlsplit(app.url).port or 0
        proxy = await stack.enter_async_context(FaultProxy("127.0.0.1", port))
        await check_sink(
            lambda: Webhook(f"http://127.0.0.1:{proxy.port}/"),
            lambda: [request.body for request in app.requests],
            proxy=proxy,
            time_limit=LIMIT,
        )


@pytest.mark.peers
async def test_redis() -> None:
    with RedisServer(*DURABLE) as server:
        async with FaultProxy("127.0.0.1", server.port) as proxy:
            await check_sink(
                lambda: Redis(f"redis://127.0.0.1:{proxy.port}", require="fsync"),
                lambda: [fields[b"content"] for fields in server.entries()],
                proxy=proxy,
                time_limit=LIMIT,
            )


@pytest.mark.peers
async def test_nats() -> None:
    with NatsServer() as server:
        await server.add_stream()

        async def stored() -> list[bytes]:
            return [message.data for message in await server.messages()]

        small = [each for each in MESSAGES.values() if len(each) < 900_000]
        async with FaultProxy("127.0.0.1", server.port) as proxy:
            await check_sink(
                lambda: Nats(f"nats://127.0.0.1:{proxy.port}"),
                stored,
                proxy=proxy,
                messages=small,
                time_limit=LIMIT,
            )


@pytest.mark.peers
async def test_s3() -> None:
    server = S3Server()
    try:
        port = int(server.url.rpartition(":")[2])
        async with FaultProxy("127.0.0.1", port) as proxy:
            endpoint = f"http://127.0.0.1:{proxy.port}"
            await check_sink(
                lambda: S3("mail", endpoint=endpoint, **ACCESS),
                lambda: [content for content, _ in server.objects().values()],
                proxy=proxy,
                time_limit=LIMIT,
            )
    finally:
        server.stop()
