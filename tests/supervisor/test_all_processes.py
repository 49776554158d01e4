"""Requests of the control socket to all processes, those of other supervisors included."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import pytest

from smtpd_fork.control_protocol import VERSION, Kick, Sessions
from smtpd_fork.supervisor.administration import AllProcesses

if TYPE_CHECKING:
    from smtpd_fork.control_protocol import Request


@pytest.mark.parametrize("request_", [Kick(v=VERSION, id="1-1"), Sessions(v=VERSION)])
async def test_no_process_delays_the_question_to_those_of_another_supervisor(
    request_: Request,
) -> None:
    both = asyncio.Barrier(2)
    answer = {"kicked": 1, "sessions": []}

    async def own(*_: Any, **__: Any) -> Any:
        await both.wait()
        return answer

    async def own_by_process(*_: Any) -> Any:
        return {1: await own()}

    process = Mock(ask=own)
    upgrades = Mock(answers=own_by_process)
    processes = Mock(current=[process], ask_all=own_by_process, upgrades=upgrades)
    administration = AllProcesses(processes, Mock())
    async with asyncio.timeout(5):
        found = await administration.answer(request_, "root")
    assert found.get("kicked", 2) == 2
