"""A reload changes the settings of a fleet that can change without leaving it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest
from support.fleet import arrivals, close_all, nodes, until
from support.redis_server import RedisServer

from smtpd_fork.cli.setting_changes import restart_lines
from smtpd_fork.config import DaemonConfig

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.mark.peers
async def test_a_reload_changes_connections_timeouts_and_when_fleet_down(
    redis: RedisServer,
) -> None:
    options = {"fleet_connections": 2, "when_full": "refuse", "max_from_ip": 0}
    async with nodes(1, f"unix:{redis.path}", **options) as (server,):
        fleet = server.fleet
        assert fleet is not None
        admitted, _ = await arrivals([server], 1)
        await until(lambda: fleet.share.slots == 2)
        more, refused = await arrivals([server], 2)
        assert (len(more), len(refused)) == (1, 1)
        admitted += more
        changed = msgspec.structs.replace(
            server.config,
            fleet_connections=4,
            fleet_timeout=3.0,
            fleet_lease=9.0,
            when_fleet_down="refuse",
        )
        assert await server.reload(changed) == [
            *("fleet_connections 2 -> 4", "fleet_timeout 5 -> 3"),
            *("fleet_lease 6 -> 9", "when_fleet_down local -> refuse"),
        ]
        await until(lambda: fleet.share.slots > 2)
        more, refused = await arrivals([server], 1)
        assert (len(more), refused) == (1, [])
        await until(lambda: fleet.share.slots == 4)
        assert server.gate.count == 3
        redis.kill()
        await until(lambda: not fleet.admits)
        await close_all([*admitted, *more])
        _, refused = await arrivals([server], 1)
        assert "Service not available, try again later" in refused[0]
        redis.start()


async def test_a_reload_keeps_the_node_in_its_fleet_under_its_name(redis: RedisServer) -> None:
    async with nodes(1, f"unix:{redis.path}") as (server,):
        changed = msgspec.structs.replace(server.config, fleet="unix:/x", fleet_node="other")
        assert await server.reload(changed) == []
    old = DaemonConfig(fleet="unix:/a")
    assert restart_lines(old, msgspec.structs.replace(old, fleet="unix:/b", fleet_lease=9.0)) == [
        "fleet unix:/a -> unix:/b needs a restart"
    ]
