"""Changes of the limits of all processes at run time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from smtpd_fork.config import DaemonConfig
from smtpd_fork.gate import Gate
from smtpd_fork.supervisor.process_settings import ProcessSettings

if TYPE_CHECKING:
    import pytest


class Stopped:
    """A process that does not answer."""

    number = 1

    async def ask(self, kind: str, body: object, *, seconds: float | None = None) -> str:
        async with asyncio.timeout(seconds):
            await asyncio.Event().wait()
        return kind


class Settings(ProcessSettings):
    """The settings of one process."""

    gate = Gate()

    @property
    def current(self) -> Any:
        return [Stopped()]


async def test_a_process_that_does_not_answer_does_not_block_a_change_of_limits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = "smtpd_fork.supervisor.process_settings.ANSWER_SECONDS"
    monkeypatch.setattr(name, 0.01, raising=False)
    settings = Settings(DaemonConfig.build({"processes": 2}))
    async with asyncio.timeout(5):
        assert await settings.set_limits(max_from_ip=7) == ""
    assert settings.changed_limits == {"max_from_ip": 7}
