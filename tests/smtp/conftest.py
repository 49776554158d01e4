"""Fixtures for tests of transports."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from smtpd_fork.smtp.socket_poll import LoopPoll, SocketPoll

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture(params=[SocketPoll, LoopPoll])
async def poll(request: pytest.FixtureRequest) -> AsyncIterator[SocketPoll]:
    """Return a poll of each kind: with its own epoll, and with the loop."""
    poll = request.param(asyncio.get_running_loop())
    yield poll
    poll.close()
