"""A process and the requests of its supervisor, in whatever order they arrive."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from unittest.mock import AsyncMock, Mock

import msgspec

from smtpd_fork.control_protocol import VERSION, Undeny
from smtpd_fork.observe.reload_outcome import ReloadOutcome
from smtpd_fork.supervisor.child_control import ChildControl

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@asynccontextmanager
async def process() -> AsyncIterator[tuple[ChildControl, Mock, Mock, Mock]]:
    """Yield the control of a process, its channel, its server and its orders."""
    channel, server, orders = Mock(), Mock(), Mock()
    channel.start, channel.ended = AsyncMock(), AsyncMock(side_effect=asyncio.Event().wait)
    by_name = {name: getattr(orders, name) for name in ("stop", "drain", "leave", "abort")}
    refused = AsyncMock(return_value=ReloadOutcome(reason="the server is not running"))
    control = ChildControl(channel, Mock(), server, by_name, refused, None)
    await control.start()
    yield control, channel, server, orders
    await control.stop()


async def test_a_process_that_was_to_drain_twice_goes_on_after_its_last_session() -> None:
    async with process() as (_, channel, server, orders):
        last_session = asyncio.Event()
        server.leave = last_session.wait
        for _ in range(2):
            await channel.answer("rest", None)
            await asyncio.sleep(0)
        await channel.answer("resume", None)
        last_session.set()
        for _ in range(5):
            await asyncio.sleep(0)
        server.accept.assert_called_once_with()
        assert not orders.leave.called
        await channel.answer("rest", None)
        for _ in range(5):
            await asyncio.sleep(0)
        orders.leave.assert_called_once_with(None)


async def test_denials_change_once_the_networks_denied_before_have_been_read() -> None:
    async with process() as (control, channel, server, _):
        denials = server.gate.denials
        server.fleet = None
        undeny = msgspec.json.encode(Undeny(v=VERSION, network="192.0.2.0/24")).decode()
        tasks = [
            asyncio.ensure_future(channel.answer(kind, body))
            for kind, body in [
                ("undeny", "192.0.2.0/24"),
                ("deny", ("192.0.2.0/24", "Spam", None, "root")),
                ("control", ("root", undeny)),
            ]
        ]
        await asyncio.wait(tasks, timeout=0.01)
        assert not denials.mock_calls
        await control.serving()
        await asyncio.gather(*tasks)
        assert [name for name, *_ in denials.mock_calls][:3] == ["remove", "add", "remove"]


async def test_a_process_that_stops_makes_no_reload_fail() -> None:
    async with process() as (control, channel, _, _):
        await control.stopping()
        assert await channel.answer("reload", "root") == []
