"""The metrics of a fleet, its section of the status page, and readiness during an outage."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from support.fleet import Taker, arrivals, close_all, nodes, until
from support.redis_server import RedisServer
from support.status import watched

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


async def test_clients_round_trips_and_episodes_are_counted_and_readiness_ends(
    redis: RedisServer,
) -> None:
    url = f"unix:{redis.path}"
    options: dict[str, Any] = {"fleet": url, "when_fleet_down": "refuse", "fleet_connections": 9}
    async with (
        nodes(1, url, max_from_ip=2, fleet_connections=9) as others,
        watched(Taker(), max_from_ip=2, **options) as page,
    ):
        there, _ = await arrivals(others, 1)
        server = page.server
        fleet = server.fleet
        assert fleet is not None
        admitted, refused = await arrivals([server], 2)
        assert (len(admitted), len(refused)) == (1, 1)
        text = (await page.get("/metrics")).body
        for line in (
            *('fleet_state{state="up"} 1.0', 'fleet_state{state="down"} 0.0', "fleet_nodes 2.0"),
            *('questions_total{outcome="admitted"} 1.0', 'questions_total{outcome="refused"} 1.0'),
            *("fleet_episodes_total 0.0", 'questions_total{outcome="alone"} 0.0'),
        ):
            assert line in text
        assert (await page.get("/readyz")).status == 200
        await close_all([*there, *admitted])
        redis.kill()
        await until(lambda: not fleet.admits)
        ready = await page.get("/readyz")
        assert (ready.status, ready.body) == (503, "fleet-down\n")
        await until(lambda: page.status._snapshots._valid_until < time.monotonic())
        text = (await page.get("/metrics")).body
        assert 'smtpd_fork_fleet_state{state="down"} 1.0' in text
        assert "smtpd_fork_fleet_episodes_total 1.0" in text
        assert json.loads((await page.get("/status.json")).body)["fleet"]["state"] == "down"
        assert "<h2>Fleet</h2>" in (await page.get("/")).body
        redis.start()
