"""PIPELINING (RFC 2920): commands in one packet are processed at once, and in turn with others."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from support.client import MAIL, RCPT, Client, replies
from support.handlers import Collect
from support.server import greeted, serve

from smtpd_fork.sinks import Discard
from smtpd_fork.smtp import Connection

if TYPE_CHECKING:
    import pytest


async def test_a_whole_transaction_in_one_packet_is_processed() -> None:
    handler = Collect()
    async with serve(handler) as server, await Client.to(server.addresses[0]) as client:
        client.send(f"EHLO x\r\n{MAIL}\r\n{RCPT}\r\nDATA\r\none\r\n.\r\nNOOP\r\n{MAIL}\r\nQUIT\r\n")
        assert await replies(client, 9) == [220, 250, 250, 250, 354, 250, 250, 250, 221]
        assert await client.ended()
    assert handler.messages == [b"one\r\n"]


async def test_many_transactions_in_packets_of_any_size_are_processed() -> None:
    handler = Collect()
    one = f"{MAIL}\r\n{RCPT}\r\nDATA\r\n..%d\r\n.\r\n{MAIL}\r\nRCPT TO:<b@c>\r\nBDAT 4\r\n.\r\n%d"
    stream = "".join((one + "BDAT 2 LAST\r\n\r\n") % (n % 10, n % 10) for n in range(50)).encode()
    async with greeted(handler) as client:
        size = 1
        while stream:
            client.send(stream[:size])
            stream, size = stream[size:], size % 97 + 13
            await asyncio.sleep(0)
        assert await replies(client, 50 * 8) == [250, 250, 354, 250, 250, 250, 250, 250] * 50
    assert len(handler.messages) == 100
    assert handler.messages[:2] == [b".0\r\n", b".\r\n0\r\n"]
    assert handler.messages[-2:] == [b".9\r\n", b".\r\n9\r\n"]


class Recorder:
    """A transport that stores the data that is written to it."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self.written: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        self.written.append(data)
        self._transport.write(data)


async def test_the_replies_to_a_batch_are_written_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    recorders: list[Recorder] = []
    connection_made = Connection.connection_made

    def record(self: Connection, transport: Any) -> None:
        connection_made(self, transport)
        self.transport = Recorder(transport)
        recorders.append(self.transport)

    monkeypatch.setattr(Connection, "connection_made", record)
    async with greeted(Discard()) as client:
        (recorder,) = recorders
        recorder.written.clear()
        await client.say(MAIL, RCPT, RCPT, "DATA")
        assert [batch.count(b"\r\n") for batch in recorder.written] == [4]


async def test_a_pipelined_data_after_a_rejected_rcpt_is_rejected() -> None:
    async with greeted(Discard()) as client:
        client.send(f"{MAIL}\r\nRCPT TO:<nobody\r\nDATA\r\nRSET\r\n")
        assert await replies(client, 4) == [250, 553, 503, 250]


async def test_pipelined_commands_do_not_block_other_sessions() -> None:
    """aiosmtpd processes all buffered commands before other sessions."""
    async with serve(Discard()) as server:
        flood = await Client.to(server.addresses[0])
        await flood.greet()
        flood.send(b"MAIL FROM:<a@example.com>\r\n" * 20_000)
        async with await Client.to(server.addresses[0]) as client:
            await client.greet()
            assert (await client.say("NOOP")).code == 250
        flood.reset()
