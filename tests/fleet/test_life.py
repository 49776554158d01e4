"""The life cycle of a node: starts and stops in any order, and changed limits, leave nothing."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from support.client import Client
from support.fleet import (
    Taker,
    arrivals,
    close_all,
    fleet,
    in_state,
    nodes,
    outage_lines,
    own_fleet,
    sessions_in,
    until,
    wait_until_all_sent,
)
from support.gates import new_gate
from support.link_proxy import LinkProxy
from support.server import serve

from smtpd_fork import Config, Server
from smtpd_fork.errors import OperatingSystemError
from smtpd_fork.fleet import State

if TYPE_CHECKING:
    from support.redis_server import RedisServer

pytestmark = pytest.mark.usefixtures("soon")

OPTIONS: dict[str, Any] = {"max_from_ip": 5, "fleet_timeout": 0.2, "fleet_lease": 2}
ONE = "c:127.0.0.1"


async def test_a_fleet_may_be_stopped_before_it_is_started_and_started_again(
    redis: RedisServer,
) -> None:
    node = own_fleet(f"unix:{redis.path}")
    await node.stop()
    for _ in range(2):
        async with node:
            assert str(node.state) == "up"
            with redis.client() as client:
                assert client.zcard("{smtpd-fork}:1:nodes") == 1
        assert str(node.state) == "down"
        await node.stop()
    with redis.client() as client:
        assert client.keys("*nodes") == []


async def test_a_fleet_that_is_started_twice_leaves_at_the_second_stop(redis: RedisServer) -> None:
    node = own_fleet(f"unix:{redis.path}")
    async with node:
        async with node:
            assert len([t for t in asyncio.all_tasks() if "Messenger._run" in repr(t)]) == 1
        assert str(node.state) == "up"
    assert str(node.state) == "down"


async def test_a_stop_while_redis_is_down_ends_at_once_and_leaves_no_task() -> None:
    node = own_fleet("redis://127.0.0.1:1")
    await node.start()
    before = asyncio.all_tasks()
    began = time.monotonic()
    await node.stop()
    assert time.monotonic() - began < 2
    assert not asyncio.all_tasks() - before


async def test_two_servers_that_share_a_gate_are_one_node(redis: RedisServer) -> None:
    shared = new_gate(max_from_ip=5)
    async with (
        own_fleet(f"unix:{redis.path}", shared) as node,
        serve(Taker(), gate=shared) as one,
        serve(Taker(), gate=shared) as two,
        nodes(1, f"unix:{redis.path}", **OPTIONS) as others,
    ):
        assert one.fleet is two.fleet is node
        admitted, refused = await arrivals([one, two, *others], 12)
        assert (len(admitted), len(refused)) == (5, 7)
        assert node.node.nodes == 2 or fleet(others[0]).node.nodes == 2
        await close_all(admitted)
        await until(lambda: shared.count == 0)


async def test_a_server_that_fails_to_start_does_not_end_the_fleet_of_others_that_share_it(
    redis: RedisServer, taken: int
) -> None:
    shared = new_gate(max_from_ip=5)
    node = own_fleet(f"unix:{redis.path}", shared)
    async with serve(Taker(), gate=shared):
        with pytest.raises(OperatingSystemError, match="in use by another program"):
            await Server(Taker(), gate=shared, listen=[f"127.0.0.1:{taken}"]).start()
        assert node.state is State.UP


async def test_a_reload_that_changes_limits_while_questions_are_pending_keeps_the_counts(
    redis: RedisServer,
) -> None:
    options = {**OPTIONS, "fleet_timeout": 5}
    async with (
        LinkProxy(redis.path) as proxy,
        nodes(1, f"redis://127.0.0.1:{proxy.port}", **options) as servers,
    ):
        (server,) = servers
        changes: list[dict[str, Any]] = [
            {"max_from_ip": 3, "rate": ["100/m"]},
            {"max_from_ip": 0},
            {"max_from_ip": 4},
        ]
        common = {"listen": ["127.0.0.1:0"], "max_from_net": ["0"], **OPTIONS, "fleet_timeout": 5}
        common["fleet"] = f"redis://127.0.0.1:{proxy.port}"
        for limits in changes:
            proxy.delay = 0.3
            clients = [await Client.to(server.addresses[0]) for _ in range(3)]
            await until(
                lambda: fleet(server).node.waiting_since() is not None and server.gate.count == 3
            )
            await server.reload(Config.build({**common, **limits}))
            proxy.delay = 0
            for client in clients:
                assert (await client.reply()).code == 220
            await wait_until_all_sent(servers)
            with redis.client() as client_of_redis:
                count = 3 if limits["max_from_ip"] else 0
                assert sessions_in(client_of_redis, ONE) == count
            await close_all(clients)
            await until(lambda: server.gate.count == 0)
            await wait_until_all_sent(servers)
        assert fleet(server).share.held == {}
        with redis.client() as client_of_redis:
            assert sessions_in(client_of_redis, ONE) == 0


async def test_a_client_that_is_kicked_while_its_question_is_pending_is_not_counted(
    redis: RedisServer,
) -> None:
    options = {**OPTIONS, "fleet_timeout": 5}
    async with (
        LinkProxy(redis.path) as proxy,
        nodes(1, f"redis://127.0.0.1:{proxy.port}", **options) as servers,
    ):
        (server,) = servers
        proxy.delay = 0.5
        client = await Client.to(server.addresses[0])
        await until(lambda: server.gate.count == 1)
        assert [each.phase for each in server.gate.ledger()] == ["fleet"]
        assert await server.kick(lambda _: True) == 1
        assert (await client.reply()).code == 421
        await client.close()
        proxy.delay = 0
        await wait_until_all_sent(servers)
        with redis.client() as client_of_redis:
            await until(lambda: sessions_in(client_of_redis, ONE) == 0)


async def test_clients_behind_a_proxy_are_counted_by_their_own_addresses(
    redis: RedisServer,
) -> None:
    options = {
        **OPTIONS,
        "listen": ["smtp+proxy:127.0.0.1:0"],
        "proxy_trust": ["127.0.0.1"],
        "max_from_ip": 2,
    }
    async with nodes(2, f"unix:{redis.path}", **options) as servers:
        codes: dict[str, list[int]] = {}
        clients = []
        for number in range(12):
            address = f"192.0.2.{number % 2 + 1}"
            client = await Client.to(servers[number // 2 % 2].addresses[0])
            client.send(f"PROXY TCP4 {address} 192.0.2.9 1 25\r\n")
            codes.setdefault(address, []).append((await client.reply()).code)
            clients.append(client)
        assert codes == {f"192.0.2.{n}": [220, 220, 421, 421, 421, 421] for n in (1, 2)}
        await close_all(clients)


async def test_without_the_fleet_refuse_admits_only_exempt_clients(
    redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    options = {**OPTIONS, "when_fleet_down": "refuse", "exempt": ["127.0.9.0/24"]}
    async with nodes(1, f"unix:{redis.path}", **options) as servers:
        redis.kill()
        admitted, refused = await arrivals(servers, 3)
        assert admitted == []
        text = "421 4.3.2 mx.example.com Service not available, try again later ["
        assert all(each.startswith(text) for each in refused)
        admitted, _ = await arrivals(servers, 7, source="127.0.9.1")
        assert len(admitted) == 7
        redis.start()
        await in_state(servers, State.UP)
        more, _ = await arrivals(servers, 7)
        assert len(more) == 5
        await close_all([*admitted, *more])
        assert "WARNING fleet in reach again" in outage_lines(caplog)[1]


async def test_two_nodes_with_the_same_name_are_counted_as_two(redis: RedisServer) -> None:
    url, options = f"unix:{redis.path}", {**OPTIONS, "fleet_connections": 8}
    async with nodes(1, url, **options) as one, nodes(1, url, **options) as two:
        assert fleet(one[0]).node.name != fleet(two[0]).node.name
        admitted, refused = await arrivals([*one, *two], 12)
        assert (len(admitted), len(refused)) == (5, 7)
        await close_all(admitted)


async def test_the_count_of_a_session_of_hours_is_sent_again_before_it_expires(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smtpd_fork.fleet.node.KEEP_SECONDS", 2.0)
    async with nodes(2, f"unix:{redis.path}", **OPTIONS) as servers:
        admitted, _ = await arrivals(servers, 5)
        key = "{smtpd-fork}:1:c:127.0.0.1"
        with redis.client() as client:

            def shorter(milliseconds: int) -> bool:
                return int(client.pttl(key)) < milliseconds

            for _ in range(3):  # each time for longer than it would have been kept
                left = client.pttl(key)
                await until(partial(shorter, left - 500))
                await until(lambda: client.pttl(key) > 1900)
            assert sessions_in(client, ONE) == 5
        assert (await arrivals(servers, 4))[0] == []
        await close_all(admitted)
