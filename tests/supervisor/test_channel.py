"""The channel between the supervisor and a process."""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from smtpd_fork.control_protocol import Fault, RequestError
from smtpd_fork.supervisor.channel import Channel, ChannelClosedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@asynccontextmanager
async def two_ends() -> AsyncIterator[tuple[Channel, Channel]]:
    one, other = socket.socketpair()
    ours, its = Channel(one, ["full"]), Channel(other)
    await ours.start()
    await its.start()
    try:
        yield ours, its
    finally:
        for end in (ours, its):
            end.close()
            await end.ended()
        await asyncio.sleep(0)


async def test_each_end_answers_the_requests_of_the_other_in_any_order() -> None:
    slow = asyncio.Event()

    async def later(word: str, body: Any) -> Any:
        if word == "slow":
            await slow.wait()
        return [word, body]

    async with two_ends() as (ours, its):
        its.answer, ours.answer = later, lambda word, body: {word: body}
        first = asyncio.ensure_future(ours.ask("slow", b"\xff" * 300_000))
        assert await ours.ask("quick", (1, "é", None)) == ["quick", [1, "é", None]]
        assert await its.ask("sync", b"\0") == {"sync": b"\0"}
        assert not first.done()
        slow.set()
        assert await first == ["slow", b"\xff" * 300_000]


@pytest.mark.parametrize("at_once", [True, False])
async def test_an_error_is_raised_at_the_end_that_sent_the_request(
    at_once: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(word: str, _: Any) -> None:
        if word == "refused":
            raise RequestError(Fault.REFUSED, "no", 78)
        raise ZeroDivisionError

    async def fail_later(word: str, body: Any) -> None:
        fail(word, body)

    async with two_ends() as (ours, its):
        its.answer = fail if at_once else fail_later
        with pytest.raises(RequestError, match="no") as caught:
            await ours.ask("refused")
        assert (caught.value.fault, caught.value.status) == (Fault.REFUSED, 78)
        with caplog.at_level(logging.ERROR), pytest.raises(RequestError, match="internal error"):
            await ours.ask("broken")
        assert "ZeroDivisionError" in caplog.text


async def test_pending_requests_fail_when_the_other_process_ends() -> None:
    async def never(word: str, body: Any) -> None:
        await asyncio.Event().wait()

    async with two_ends() as (ours, its):
        its.answer = never
        with pytest.raises(TimeoutError):
            await ours.ask("long", seconds=0.01)
        waiting = asyncio.ensure_future(ours.ask("longer"))
        ours.notify("something")
        await asyncio.sleep(0.01)
        its.close()
        with pytest.raises(ChannelClosedError):
            await waiting
        await ours.ended()
        ours.notify("nothing")
        with pytest.raises(ChannelClosedError):
            await ours.ask("no more")


async def test_a_process_that_does_not_read_gets_the_last_state_and_takes_no_memory() -> None:
    received: list[object] = []
    done = asyncio.Event()

    def answer(kind: str, body: object) -> None:
        received.append(body)
        if kind == "left":
            done.set()

    async with two_ends() as (ours, its):
        its.answer = answer
        assert its._transport is not None
        assert ours._transport is not None
        its._transport.pause_reading()
        for number in range(100_000):
            ours.notify("full", number)
            if number % 1000 == 0:
                await asyncio.sleep(0)
        assert ours._transport.get_write_buffer_size() < 100_000
        its._transport.resume_reading()
        while received[-1:] != [99_999]:
            await asyncio.sleep(0)
        assert len(received) < 50_000
        ours.notify("full", True)
        ours.notify("left", [])
        await done.wait()
        assert received[-2:] == [True, []]
