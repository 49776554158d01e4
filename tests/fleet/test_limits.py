"""Limits that apply to all nodes of a fleet together, with a real Redis."""

from __future__ import annotations

from typing import TYPE_CHECKING

from support.client import Client
from support.fleet import arrivals, close_all, nodes, until, wait_until_all_sent

if TYPE_CHECKING:
    from support.redis_server import RedisServer


async def test_a_limit_per_client_applies_to_four_nodes_together(redis: RedisServer) -> None:
    async with nodes(4, f"unix:{redis.path}", max_from_ip=50) as servers:
        admitted, refused = await arrivals(servers, 200)
        assert len(admitted) == 50
        assert len(refused) == 150
        assert all(each.startswith("421 4.7.0 mx.example.com Too many") for each in refused)
        await close_all(admitted)
        for server in servers:
            await until(lambda server=server: server.gate.count == 0)  # type: ignore[misc]  # default
        await wait_until_all_sent(servers)
        admitted, _ = await arrivals(servers, 60)
        assert len(admitted) == 50
        await close_all(admitted)


async def test_a_rate_applies_to_four_nodes_together(redis: RedisServer) -> None:
    async with nodes(4, f"unix:{redis.path}", max_from_ip=0, rate=["30/h"]) as servers:
        admitted, refused = await arrivals(servers, 80)
        assert len(admitted) == 30
        assert "421 4.7.0 mx.example.com Too many new connections from 127.0.0.1" in refused[0]
        await close_all(admitted)


async def test_a_limit_per_network_applies_to_all_nodes_together(redis: RedisServer) -> None:
    options = {"max_from_ip": 0, "max_from_net": ["5/24"]}
    async with nodes(2, f"unix:{redis.path}", **options) as servers:
        admitted = []
        for number in range(1, 9):
            more, _ = await arrivals(servers[number % 2 :], 1, source=f"127.0.3.{number}")
            admitted += more
        assert len(admitted) == 5
        other, _ = await arrivals(servers, 1, source="127.0.4.1")
        assert len(other) == 1
        await close_all([*admitted, *other])


async def test_a_limit_with_the_prefix_local_applies_to_each_node_alone(redis: RedisServer) -> None:
    async with nodes(2, f"unix:{redis.path}", max_from_ip="local:3", rate="local:4/h") as servers:
        admitted, _ = await arrivals(servers, 12)
        assert len(admitted) == 6
        assert [str(server.config.max_from_ip) for server in servers] == ["local:3"] * 2
        await close_all(admitted)


async def test_exempt_clients_are_not_counted(redis: RedisServer) -> None:
    async with nodes(2, f"unix:{redis.path}", max_from_ip=1, exempt=["127.0.0.1"]) as servers:
        admitted, refused = await arrivals(servers, 10)
        assert (len(admitted), refused) == (10, [])
        await close_all(admitted)


async def test_all_nodes_together_admit_exactly_fleet_connections_sessions(
    redis: RedisServer,
) -> None:
    options = {"max_from_ip": 0, "fleet_connections": 20, "limit_connections": 100}
    async with nodes(4, f"unix:{redis.path}", when_full="refuse", **options) as servers:
        admitted: list[Client] = []
        for _ in range(10):
            more, _ = await arrivals(servers, 20)
            admitted += more
            assert len(admitted) <= 20
            assert sum(server.gate.count for server in servers) <= 20
        assert len(admitted) == 20
        await close_all(admitted)


async def test_a_free_slot_of_one_node_goes_to_a_client_that_waits_at_another(
    redis: RedisServer,
) -> None:
    options = {"max_from_ip": 0, "fleet_connections": 10}
    async with nodes(2, f"unix:{redis.path}", **options) as servers:
        here, there = servers
        admitted: list[Client] = []
        while len(admitted) < 10:
            client = await Client.to(here.addresses[0])
            assert (await client.reply()).code == 220
            admitted.append(client)
        waits = await Client.to(there.addresses[0])
        await admitted.pop().close()
        assert (await waits.reply()).code == 220
        await close_all([*admitted, waits])
