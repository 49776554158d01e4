"""The messages between the two supervisors of an upgrade, in whatever order they arrive."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import AsyncMock, Mock

import msgspec

import smtpd_fork.supervisor.upgrades as upgrades_module
from smtpd_fork.fleet.ledger import Ledger
from smtpd_fork.fleet.sync import Sync, decode, encode
from smtpd_fork.fleet.view import View
from smtpd_fork.supervisor.channel import Channel
from smtpd_fork.supervisor.other_supervisor import ALL_SECONDS
from smtpd_fork.supervisor.upgrades import Upgrades

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    import pytest


@asynccontextmanager
async def new_supervisor(upgrades: Upgrades) -> AsyncIterator[Channel]:
    """Begin an upgrade; yield the new supervisor's end of the channel."""
    channel = Channel(await upgrades.connect_new(Mock()))
    channel.answer = Mock()
    await channel.start()
    try:
        yield channel
    finally:
        channel.close()
        await channel.ended()


def keepers(resume: AsyncMock) -> Sequence[Mock]:
    return [Mock(process=None, accepts=False, draining=False, resume=resume) for _ in range(2)]


class Answers:
    """A process that answers, or does not."""

    def __init__(self, pid: int, *, answers: bool) -> None:
        self.pid = pid
        self.nodes: set[str] = set()
        self._answers = answers

    def notify(self, kind: str, body: object) -> None:
        """Do nothing."""

    async def ask(self, kind: str, body: object, *, seconds: float) -> str:
        async with asyncio.timeout(seconds):
            if not self._answers:
                await asyncio.Event().wait()
        return kind


async def test_a_process_without_an_answer_delays_no_other_answer_past_the_timeout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(upgrades_module, "OWN_SECONDS", 0.05, raising=False)
    processes = [Answers(1, answers=False), Answers(2, answers=True)]
    upgrades = Upgrades([Mock(process=each, accepts=True) for each in processes], None)
    async with new_supervisor(upgrades) as new:
        answers = await new.ask("all", ("status", None), seconds=ALL_SECONDS)
        assert answers == {2: "status"}


async def test_no_old_process_drains_for_a_message_from_before_the_upgrade_failed() -> None:
    resumed = asyncio.Event()
    first, second = both = keepers(AsyncMock(side_effect=resumed.wait))
    upgrades = Upgrades(both, None)
    async with new_supervisor(upgrades) as new:
        await new.ask("serves", (1, 2))
        first.stop_accepting.assert_called_once_with()
        resuming = asyncio.ensure_future(upgrades.resume())
        await asyncio.sleep(0)
        await new.ask("serves", (2, 2))
        resumed.set()
        await resuming
        upgrades.cancel()
        await new.ask("serves", (2, 2))
        async with new_supervisor(upgrades) as another:
            await new.ask("serves", (2, 2))
            assert not second.stop_accepting.called
            await another.ask("serves", (2, 2))
            second.stop_accepting.assert_called_once_with()


KEY = "c:192.0.2.1"


def sync(node: str, *sessions: int) -> Any:
    """Return a message of a process with a number of sessions of one client."""
    counts = [1, *sessions] if sessions else []
    message = Sync(node, lease=60_000, keep=90_000, limit=0, sessions=0, want=0, counts=counts)
    return [KEY], encode(message)


async def answer_to(upgrades: Upgrades, process: Any, kind: str, body: object) -> bytes:
    answer = upgrades.answer(process, kind, body)
    data: bytes = answer if isinstance(answer, bytes) else await answer
    return data


async def counted(upgrades: Upgrades, process: Any) -> dict[str, int]:
    """Return the sessions of the client, by process."""
    question = ("view", [KEY], msgspec.msgpack.encode((0, [False])))
    data = await answer_to(upgrades, process, "fleet", question)
    view = msgspec.msgpack.decode(data, type=View)
    return dict(view.held[0])


async def test_the_end_of_the_old_supervisor_removes_no_count_of_a_new_process() -> None:
    ours, its = socket.socketpair()
    old = Channel(ours)

    async def hand_over(kind: str, body: object) -> object:
        """Hand the ledger over while a message of a new process is in flight."""
        if kind == "sync":
            old.notify("ledger", Ledger().snapshot())
            return await old.ask(kind, body)
        return None

    old.answer = hand_over
    await old.start()
    upgrades = Upgrades([], its)
    await upgrades.join()
    process: Any = Answers(1, answers=True)
    await answer_to(upgrades, process, "sync", sync("mx", 3))
    assert await counted(upgrades, process) == {"mx": 3}
    old.close()
    await upgrades.wait_for_others()
    for _ in range(3):
        await asyncio.sleep(0)
    assert await counted(upgrades, process) == {"mx": 3}


async def test_a_supervisor_whose_successor_has_ended_starts_a_new_ledger() -> None:
    upgrades = Upgrades([], None)
    process: Any = Answers(1, answers=True)
    async with new_supervisor(upgrades):
        await answer_to(upgrades, process, "sync", sync("mx", 3))
        upgrades.hand_over_ledger()
    answer = decode(await answer_to(upgrades, process, "sync", sync("mx")), 0)
    assert answer.fresh, "the process sends all its counts again"
    assert await counted(upgrades, process) == {}


async def test_the_end_of_a_process_is_forwarded_after_its_last_message() -> None:
    upgrades = Upgrades([], None)
    received: asyncio.Queue[str] = asyncio.Queue()

    def answer(kind: str, _: object) -> bytes:
        if kind in {"sync", "left"}:
            received.put_nowait(kind)
        return b""

    async with new_supervisor(upgrades) as new:
        new.answer = answer
        upgrades.hand_over_ledger()
        asking = asyncio.ensure_future(new.ask("sync", sync("mx", 3)))
        await asyncio.sleep(0)
        new.notify("left", ["mx"])
        assert [await received.get() for _ in range(2)] == ["sync", "left"]
        await asking


async def test_a_new_supervisor_knows_of_free_slots_that_were_announced_before_it_had_started() -> (
    None
):
    ours, its = socket.socketpair()
    old = Channel(ours)
    old.answer = Mock()
    await old.start()
    old.notify("full", True)
    old.notify("full", False)
    process: Any = Mock(nodes=set())
    upgrades = Upgrades([Mock(process=process, accepts=True)], its)
    try:
        await upgrades.join()
        await asyncio.sleep(0.01)
        upgrades.set_full(process, full=True)
        assert not process.notify.called, "the old processes have slots for clients that wait"
        old.notify("full", True)
        while not process.notify.called:
            await asyncio.sleep(0)
        process.notify.assert_called_once_with("elsewhere", False)
    finally:
        old.close()
        await old.ended()
