from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.redis_server import RedisServer

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make nodes reconnect soon."""
    monkeypatch.setattr("smtpd_fork.fleet.messenger.BACKOFF_SECONDS", (0.02, 0.1))
    monkeypatch.setattr("smtpd_fork.fleet.messenger.PROBE_SECONDS", 0.05)
