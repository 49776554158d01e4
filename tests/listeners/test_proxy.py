"""The PROXY header of a session: its data is kept, and data after it is read."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from aiosmtpd.smtp import MISSING
from support.client import Client
from support.server import serve

from smtpd_fork.sinks import Discard

if TYPE_CHECKING:
    from support.tls import Certificates


async def test_proxy_data_survives_starttls_and_data_after_the_header_is_read(
    certificates: Certificates,
) -> None:
    seen: list[Any] = []

    class Behind(Discard):
        async def handle_PROXY(self, server: Any, session: Any, envelope: Any, data: Any) -> bool:
            return True

        async def handle_MAIL(self, server: Any, session: Any, *_: Any) -> Any:
            seen.append(str(session.proxy_data.src_addr))
            return MISSING

    options = {"proxy_protocol_timeout": 5}
    async with (
        serve(Behind(), tls_context=certificates.server, session_options=options) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        client.send("PROXY TCP4 192.0.2.7 192.0.2.8 4025 25\r\nEHLO x\r\n")
        assert (await client.reply()).code == 220
        assert (await client.reply()).code == 250
        await client.start_tls(certificates.client)
        await client.say("EHLO x")
        assert (await client.deliver()).code == 250
    assert seen == ["192.0.2.7"]


async def test_data_after_a_header_is_limited_while_handle_proxy_runs() -> None:
    asked, answer = asyncio.Event(), asyncio.Event()
    sessions: list[Any] = []

    class Slow(Discard):
        async def handle_PROXY(self, server: Any, session: Any, envelope: Any, data: Any) -> bool:
            sessions.append(server)
            asked.set()
            await answer.wait()
            return True

    options = {"proxy_protocol_timeout": 5}
    async with serve(Slow(), session_options=options) as server:
        async with await Client.to(server.addresses[0]) as client:
            client.send("PROXY TCP4 192.0.2.7 192.0.2.8 4025 25\r\n")
            await asked.wait()
            client.send("NOOP\r\n" * 500_000)
            for _ in range(200):
                await asyncio.sleep(0.001)
            assert len(sessions[0].connection.proxy_reader._buffer) < 1_000_000
            answer.set()
            assert (await client.reply()).code == 220
            assert (await client.reply()).code == 250


@pytest.mark.parametrize("header", ["", "GET / HTTP/1.1\r\n", "PROXY TCP4 nonsense\r\n"])
async def test_a_session_without_its_proxy_header_is_closed_after_the_timeout(header: str) -> None:
    class Behind(Discard):
        async def handle_PROXY(self, *_: Any) -> bool:
            return True

    options = {"proxy_protocol_timeout": 0.2}
    async with serve(Behind(), timeout=2, session_options=options) as server:
        async with await Client.to(server.addresses[0]) as client:
            client.send(header)
            assert await client.ended()
