"""The messages between the two supervisors of an upgrade, in whatever order they arrive."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from unittest.mock import AsyncMock, Mock

import smtpd_fork.supervisor.upgrades as upgrades_module
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
        self._answers = answers

    def notify(self, kind: str, body: object) -> None:
        """Take no note."""

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
