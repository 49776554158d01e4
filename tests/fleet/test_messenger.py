"""The messenger of a node: connections, delays and answers, when Redis or the loop is slow."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import msgspec
import pytest
from support.fleet import (
    outage_lines,
    own_fleet,
    until,
)
from support.gates import new_gate
from support.raw_server import raw_server, silence

from smtpd_fork.fleet import Fleet, State
from smtpd_fork.fleet.sync import Answer, FleetError, Sync
from smtpd_fork.gate import Ticket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from support.redis_server import RedisServer


pytestmark = pytest.mark.usefixtures("soon")


async def test_a_start_that_is_cancelled_leaves_no_task() -> None:
    async with raw_server(silence) as port:
        before = asyncio.all_tasks()
        node = own_fleet(f"redis://127.0.0.1:{port}")
        starting = asyncio.create_task(node.start())
        await asyncio.sleep(0.05)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        new = asyncio.all_tasks() - before
        assert not [task for task in new if "Messenger" in repr(task)]


async def test_delays_between_attempts_are_random_and_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()
    ceilings: list[float] = []

    def no_wait(low: float, high: float) -> float:
        assert low == 0
        ceilings.append(high)
        return 0.0

    monkeypatch.setattr("smtpd_fork.fleet.messenger.random.uniform", no_wait)
    async with own_fleet("redis://127.0.0.1:1"):
        await until(lambda: len(ceilings) > 8)
    assert ceilings[:7] == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


async def test_an_error_in_the_callback_of_one_client_does_not_affect_the_others(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with own_fleet(f"unix:{redis.path}") as node:
        answers: list[object] = []

        def fails(refusal: object) -> None:
            raise ZeroDivisionError

        shared = node._gate
        tickets = [shared.admit("192.0.2.1") for _ in range(2)]
        node.ask(tickets[0], fails)  # type: ignore[arg-type]  # they are admitted
        node.ask(tickets[1], answers.append)  # type: ignore[arg-type]
        await until(lambda: answers == [None])
        assert "internal error" in caplog.text
        caplog.clear()
        for ticket in tickets:
            ticket.release()  # type: ignore[union-attr]


async def test_a_link_that_cannot_be_closed_does_not_block_the_stop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("smtpd_fork.fleet.messenger.CLOSE_SECONDS", 0.1)

    class Stuck:
        description = "stuck"

        async def open(self) -> None:
            raise FleetError("not today")

        async def call(self, keys: list[str], message: bytes) -> object:
            raise AssertionError

        async def hint(self) -> str:
            raise AssertionError

        async def ask(self, question: str, keys: list[str], message: bytes) -> object:
            raise AssertionError

        async def close(self) -> None:
            await asyncio.Event().wait()

    began = time.monotonic()
    async with Fleet(new_gate(), Stuck(), node="mx"):
        pass
    assert time.monotonic() - began < 2


@pytest.mark.peers
async def test_a_blocked_loop_reads_the_answer_before_the_fleet_is_late(
    redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with own_fleet(f"unix:{redis.path}") as node:
        answers: list[object] = []
        for turns in range(8):  # before the message is sent, while it is, and after
            verdict = node._gate.admit(f"192.0.2.{turns}")
            assert isinstance(verdict, Ticket)
            node.ask(verdict, answers.append)
            for _ in range(turns):
                await asyncio.sleep(0)
            if turns % 2:
                time.sleep(2.2 if turns == 5 else 0.25)
            await until(lambda turns=turns: len(answers) == turns + 1)  # type: ignore[misc]
            verdict.release()
        assert answers == [None] * 8
        assert node.state is State.UP
        assert outage_lines(caplog) == []


class Steered:
    """A link that answers when the test releases the answer.

    :ivar calls: each message with its answer to come
    :ivar hints: to be received
    """

    description = "steered"

    def __init__(self) -> None:
        self.calls: asyncio.Queue[tuple[Sync, asyncio.Future[bytes]]] = asyncio.Queue()
        self.hints: asyncio.Queue[str] = asyncio.Queue()

    async def open(self) -> None:
        pass

    async def call(self, keys: list[str], message: bytes) -> object:
        future = asyncio.get_running_loop().create_future()
        self.calls.put_nowait((msgspec.msgpack.decode(message, type=Sync), future))
        return await future

    async def hint(self) -> str:
        return await self.hints.get()

    async def ask(self, question: str, keys: list[str], message: bytes) -> object:
        raise FleetError("not here")

    async def close(self) -> None:
        pass

    async def answer(self, *, slots: int = 0, waiting: int = 0) -> Sync:
        """Answer the next message, and return it."""
        sync, future = await self.calls.get()
        future.set_result(msgspec.msgpack.encode(Answer(False, 1, slots, 0, waiting, 0, [])))
        return sync


@asynccontextmanager
async def steered() -> AsyncIterator[tuple[Steered, Fleet]]:
    """Yield a link and a node that has joined, and that renews its lease after 20 s."""
    link = Steered()
    node = Fleet(new_gate(), link, node="mx", lease=60, timeout=20, connections=4)
    starting = asyncio.create_task(node.start())
    await link.answer(slots=1)
    await starting
    async with asyncio.timeout(5):
        yield link, node
    stopping = asyncio.create_task(node.stop())
    await link.answer()
    await stopping


async def test_a_wake_up_during_a_message_causes_another_message_at_once() -> None:
    async with steered() as (link, node):
        node.share.wake(True)
        message = await link.calls.get()
        node.share.wake(True)
        await asyncio.sleep(0.01)
        link.calls.put_nowait(message)
        await link.answer()
        await link.answer()


async def test_a_spare_slot_is_given_up_at_once_though_an_older_answer_follows_the_hint() -> None:
    async with steered() as (link, node):
        node.share.wake(True)
        message = await link.calls.get()
        link.hints.put_nowait("waiting")
        await until(lambda: node.share.others_wait)
        link.calls.put_nowait(message)
        await link.answer(slots=1)  # of the fleet before the other node had to wait
        assert (await link.answer(slots=1, waiting=1)).want > 0
        assert (await link.answer(waiting=1)).want == 0
