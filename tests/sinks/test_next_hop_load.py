"""Lmtp and Relay with large and many messages: the loop is not blocked, memory is bounded."""

from __future__ import annotations

import asyncio
import tracemalloc
from typing import TYPE_CHECKING

from blockbuster import BlockBuster
from hypothesis import given, settings
from support.handlers import Collect
from support.mail import a_mail, contents, large
from support.next_hop import Fault, Hop, a_hop, closing
from support.server import serve, until

from smtpd_fork.hops.connection import Phase
from smtpd_fork.message.results import per_recipient
from smtpd_fork.sinks.relay import Relay

if TYPE_CHECKING:
    import pytest
    from support.next_hop import Answer


async def test_the_event_loop_is_not_blocked() -> None:
    blockbuster = BlockBuster()
    async with a_hop() as hop, closing(Relay(hop.address)) as relay:
        blockbuster.activate()
        try:
            for _ in range(3):
                assert (await relay.deliver(a_mail()))[0][:3] == "250"
        finally:
            blockbuster.deactivate()


async def test_a_large_message_is_sent_in_pieces_with_flow_control() -> None:
    async with a_hop() as hop, closing(Relay(hop.address)) as relay:
        hop.read_content = False
        content = large()
        tracemalloc.start()
        try:
            delivering = asyncio.ensure_future(relay.deliver(a_mail(content=content)))
            await until(lambda: "DATA" in hop.commands)
            for _ in range(100):
                await asyncio.sleep(0.001)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        delivering.cancel()
        await asyncio.gather(delivering, return_exceptions=True)
        assert peak < len(content) / 4


async def test_an_idle_connection_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smtpd_fork.hops.pool.IDLE_SECONDS", 0.05)
    async with a_hop() as hop, closing(Relay(hop.address, connections=3)) as relay:
        await asyncio.gather(*(relay.deliver(a_mail()) for _ in range(3)))
        await until(lambda: relay.status.connections == 0)
        await until(lambda: hop.commands.count("QUIT") == 3)
        assert (await relay.deliver(a_mail()))[0][:3] == "250"


async def test_a_recovered_hop_is_used_again_under_continuous_load() -> None:
    hop = Hop()
    await hop.start()
    await hop.stop()
    relay = Relay(hop.address)
    replies: list[str] = []

    async def offer() -> None:
        while not replies or replies[-1][:3] != "250":
            replies.extend(per_recipient(await relay.deliver(a_mail()), 1))
            await asyncio.sleep(0.001)

    async with closing(relay):
        offering = [asyncio.ensure_future(offer()) for _ in range(5)]
        await until(lambda: len(replies) > 20)
        await hop.start()
        await asyncio.wait_for(asyncio.gather(*offering), 10)
    await hop.stop()


async def test_many_concurrent_messages_with_random_errors_all_get_replies() -> None:
    async with a_hop() as hop, closing(Relay(hop.address, connections=4)) as relay:
        faults: list[Answer] = [
            Fault.CLOSE,
            Fault.RESET,
            "421 4.3.2 Closing",
            b"garbage\r\n",
            "451 4.0.0 Later",
        ]
        for number, step in enumerate(["MAIL", "RCPT", "DATA", "END", "RSET"]):
            usual = "354 Go on" if step == "DATA" else "250 2.0.0 OK"
            hop.answers[step] = [usual, usual, faults[number], usual, *faults]
        replies = await asyncio.gather(*(relay.deliver(a_mail()) for _ in range(200)))
        answers = [reply if isinstance(reply, str) else reply[0] for reply in replies]
        assert {reply[:3] for reply in answers} <= {"250", "451"}
        assert sum(reply[:3] == "250" for reply in answers) <= len(hop.messages)
        hop.answers.clear()
        assert (await relay.deliver(a_mail()))[0][:3] == "250"
        assert relay._pool is not None
        await until(
            lambda: relay._pool and {each.phase for each in relay._pool._open} == {Phase.READY}
        )


@settings(max_examples=30)
@given(contents)
def test_any_content_arrives_unchanged(content: bytes) -> None:
    async def pass_on() -> None:
        behind = Collect()
        async with serve(behind) as server:
            relay = Relay(f"127.0.0.1:{server.addresses[0][1]}", binarymime=True)
            reply = (await relay.deliver(a_mail(content=content, body="BINARYMIME")))[0]
            await relay.close()
        assert reply[:3] == "250"
        assert behind.messages == [b"".join(a_mail(content=content).relayed())]

    asyncio.run(pass_on())
