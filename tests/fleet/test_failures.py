"""The Redis of a fleet is down, late, empty, or refuses: one log line, and no client is lost."""

from __future__ import annotations

import asyncio
import os
import time
from signal import SIGCONT, SIGSTOP
from typing import TYPE_CHECKING, Any

import pytest
from support.client import Client
from support.fleet import (
    arrivals,
    close_all,
    fleet,
    in_state,
    nodes,
    outage_lines,
    sessions_in,
    until,
    wait_until_all_sent,
)
from support.link_proxy import LinkProxy
from support.redis_server import RedisServer

from smtpd_fork.fleet import State
from smtpd_fork.fleet.redis_link import SCRIPT

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    import redis as redis_py

    from smtpd_fork import Server

    Change: TypeAlias = Callable[[redis_py.Redis], object]

pytestmark = pytest.mark.usefixtures("soon")

TIMEOUT = 0.2
SLACK = 2.0
"""Seconds that a busy machine may take longer."""

OPTIONS: dict[str, Any] = {"max_from_ip": 5, "fleet_timeout": TIMEOUT, "fleet_lease": 2}
ONE = "c:127.0.0.1"


async def greeted_in(server: Server) -> float:
    """Connect a client that is greeted, and goes; return after how many seconds."""
    began = time.monotonic()
    client = await Client.to(server.addresses[0])
    assert (await client.reply()).code == 220
    took = time.monotonic() - began
    await client.close()
    return took


async def test_nodes_join_the_fleet_when_a_redis_that_was_down_at_their_start_is_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = RedisServer()
    try:
        async with nodes(2, f"redis://127.0.0.1:{server.port}", **OPTIONS) as servers:
            admitted, refused = await arrivals(servers, 12)
            assert (len(admitted), len(refused)) == (10, 2), "each node has its own limit"
            lines = outage_lines(caplog)
            assert len(lines) == 2
            assert all("fleet out of reach, the limits of this node apply" in x for x in lines)
            assert all(f"redis://127.0.0.1:{server.port}: " in line for line in lines)
            server.start()
            await in_state(servers, State.UP)
            await wait_until_all_sent(servers)
            with server.client() as client:
                assert sessions_in(client, ONE) == 10, "sessions of the outage are sent"
            assert (await arrivals(servers, 4))[0] == []
            assert [" in reach again after " in line for line in outage_lines(caplog)[2:]] == [
                True,
                True,
            ]
            await close_all(admitted)
    finally:
        server.stop()


async def test_no_client_waits_longer_than_the_timeout_when_redis_is_killed_under_load(
    redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    options = {**OPTIONS, "max_from_ip": 1000}
    async with nodes(2, f"unix:{redis.path}", **options) as servers:

        async def load(server: Server) -> list[float]:
            return [await greeted_in(server) for _ in range(20)]

        async def kill() -> None:
            await until(lambda: sum(server.gate.stats()["admitted"] for server in servers) > 50)
            redis.kill()

        killing = asyncio.create_task(kill())
        times = await asyncio.gather(*map(load, servers * 8))
        await killing
        assert max(map(max, times)) < TIMEOUT + SLACK
        assert [line.split(",")[0] for line in outage_lines(caplog)] == [
            "ERROR fleet out of reach"
        ] * 2
        redis.start()
        await in_state(servers, State.UP)


@pytest.mark.parametrize("seconds", [0.5, 2.5], ids=["shorter than a lease", "longer"])
async def test_a_redis_that_hangs_delays_only_pending_questions_and_causes_one_log_line(
    redis: RedisServer, caplog: pytest.LogCaptureFixture, seconds: float
) -> None:
    async with nodes(1, f"redis://127.0.0.1:{redis.port}", **OPTIONS) as servers:
        os.kill(redis.process.pid, SIGSTOP)
        try:
            began = time.monotonic()
            assert await greeted_in(servers[0]) < TIMEOUT + SLACK
            assert fleet(servers[0]).state is State.LATE
            while time.monotonic() < began + seconds:
                assert await greeted_in(servers[0]) < TIMEOUT
                await asyncio.sleep(0.1)
        finally:
            os.kill(redis.process.pid, SIGCONT)
        await in_state(servers, State.UP)
        error, warning = outage_lines(caplog)
        assert error.endswith("apply: no answer within 200 ms")
        assert "WARNING fleet in reach again after" in warning


async def test_a_timeout_longer_than_half_of_the_lease_is_half_of_it(redis: RedisServer) -> None:
    options = {**OPTIONS, "fleet_timeout": 10, "fleet_connections": 10}
    async with nodes(1, f"unix:{redis.path}", **options) as servers:
        os.kill(redis.process.pid, SIGSTOP)
        try:
            assert await greeted_in(servers[0]) < 1 + SLACK
            assert await greeted_in(servers[0]) < SLACK
        finally:
            os.kill(redis.process.pid, SIGCONT)


async def test_a_redis_that_is_slow_is_asked_again_once_an_answer_is_in_time(
    redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        LinkProxy(redis.path) as proxy,
        nodes(2, f"redis://127.0.0.1:{proxy.port}", **OPTIONS) as servers,
    ):
        proxy.delay = 2 * TIMEOUT
        admitted, refused = await arrivals(servers, 12)
        assert (len(admitted), len(refused)) == (10, 2)
        proxy.delay = 0
        await in_state(servers, State.UP)
        await wait_until_all_sent(servers)
        assert (await arrivals(servers, 4))[0] == [], "both nodes know all sessions"
        assert sorted(line.split()[0] for line in outage_lines(caplog)) == [
            *["ERROR"] * 2,
            *["WARNING"] * 2,
        ]
        await close_all(admitted)


async def test_a_flushed_redis_gets_all_counts_again(
    redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with nodes(2, f"unix:{redis.path}", **OPTIONS, fleet_connections=20) as servers:
        admitted, _ = await arrivals(servers, 5)
        with redis.client() as client:
            client.flushall()
            await until(lambda: sessions_in(client, ONE) == 5)
        assert (await arrivals(servers, 3))[0] == []
        assert outage_lines(caplog) == []
        await close_all(admitted)


async def test_a_node_that_finds_the_fleet_empty_makes_the_others_send_their_counts_at_once(
    redis: RedisServer,
) -> None:
    options = {**OPTIONS, "fleet_lease": 60}  # the next message is due after 20 s
    async with nodes(3, f"unix:{redis.path}", **options) as servers:
        admitted, _ = await arrivals(servers[:2], 5)
        with redis.client() as client:
            client.flushall()
            more, _ = await arrivals(servers[2:], 1)
            async with asyncio.timeout(10):
                await until(lambda: sessions_in(client, ONE) == 6)
        assert (await arrivals(servers, 3))[0] == []
        await close_all([*admitted, *more])


async def test_an_empty_redis_that_replaces_another_gets_all_counts_again(
    redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with nodes(4, f"unix:{redis.path}", **OPTIONS, fleet_connections=20) as servers:
        admitted, _ = await arrivals(servers, 5)
        redis.kill()
        redis.start()
        with redis.client() as client:
            await until(lambda: sessions_in(client, ONE) == 5)
        await in_state(servers, State.UP)
        assert (await arrivals(servers, 8))[0] == []
        assert len(outage_lines(caplog)) <= 8
        await close_all(admitted)


NODES, COUNTS = "{smtpd-fork}:1:nodes", "{smtpd-fork}:1:c:127.0.0.1"

REFUSALS: dict[str, tuple[Change, Change, str]] = {
    "READONLY": (
        lambda redis: redis.replicaof("127.0.0.1", 1),
        lambda redis: redis.replicaof("NO", "ONE"),
        "READONLY|read only replica",
    ),
    "OOM": (
        lambda redis: redis.config_set("maxmemory", 1),
        lambda redis: redis.config_set("maxmemory", 0),
        "OutOfMemoryError|maxmemory",
    ),
    "NOREPLICAS": (
        lambda redis: redis.config_set("min-replicas-to-write", 1),
        lambda redis: redis.config_set("min-replicas-to-write", 0),
        "NOREPLICAS|enough good replicas",
    ),
    "NOPERM": (
        lambda redis: redis.acl_setuser("default", enabled=True, commands=["-hset"]),
        lambda redis: redis.acl_setuser("default", enabled=True, commands=["+hset"]),
        "the ACL of Redis refuses the command HSET",
    ),
    "WRONGTYPE": (
        lambda redis: (redis.delete(NODES), redis.set(NODES, "text")),
        lambda redis: redis.delete(NODES),
        "a key of the fleet has another type: another program uses it",
    ),
    "script error": (
        lambda redis: (redis.zadd(NODES, {"x": 9e15}), redis.hset(COUNTS, "x", "garbage")),
        lambda redis: redis.delete(COUNTS),
        "script",
    ),
    "layout": (
        lambda redis: redis.set("{smtpd-fork}:layout", "2"),
        lambda redis: redis.delete("{smtpd-fork}:layout"),
        "the fleet has layout 2, this node has 1",
    ),
}


@pytest.mark.parametrize("refusal", REFUSALS)
async def test_a_redis_that_refuses_causes_one_clear_line_and_is_used_again_once_it_accepts(
    redis: RedisServer, caplog: pytest.LogCaptureFixture, refusal: str
) -> None:
    breaks, mends, reason = REFUSALS[refusal]
    async with nodes(1, f"unix:{redis.path}", **OPTIONS) as servers:
        with redis.client() as client:
            breaks(client)
            admitted, refused = await arrivals(servers, 7)
            assert (len(admitted), len(refused)) == (5, 2), "the limit of the node applies"
            await until(lambda: outage_lines(caplog))
            mends(client)
            await in_state(servers, State.UP)
            await wait_until_all_sent(servers)
            assert sessions_in(client, ONE) == 5
        error, warning = outage_lines(caplog)
        assert error.startswith("ERROR fleet out of reach, the limits of this node apply: unix:")
        assert pytest.raises(AssertionError, match=reason).matches(AssertionError(error)), error
        assert warning.startswith("WARNING fleet in reach again")
        await close_all(admitted)


async def test_no_client_is_affected_when_redis_has_lost_its_scripts(
    redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with nodes(2, f"unix:{redis.path}", **{**OPTIONS, "max_from_ip": 20}) as servers:
        admitted: list[Client] = []
        with redis.client() as client:
            for _ in range(5):
                client.script_flush()
                more, _ = await arrivals(servers, 6)
                admitted += more
        assert len(admitted) == 20
        assert outage_lines(caplog) == []
        await close_all(admitted)


async def test_nodes_with_two_versions_of_the_script_share_their_limits(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"unix:{redis.path}"
    async with nodes(1, url, **OPTIONS) as old:
        monkeypatch.setattr("smtpd_fork.fleet.redis_link.SCRIPT", f"{SCRIPT}\n-- another version\n")
        async with nodes(1, url, **OPTIONS) as new:
            admitted, refused = await arrivals([*old, *new], 12)
            assert (len(admitted), len(refused)) == (5, 7)
            await close_all(admitted)


@pytest.mark.peers
async def test_after_a_partition_the_lost_nodes_slots_are_free_and_its_own_limits_apply_to_it(
    redis: RedisServer,
) -> None:
    options = {**OPTIONS, "max_from_ip": 0, "fleet_connections": 12, "limit_connections": 100}
    async with (
        LinkProxy(redis.path) as proxy,
        nodes(1, f"redis://127.0.0.1:{proxy.port}", **options) as cut_off,
        nodes(1, f"unix:{redis.path}", **options) as others,
    ):
        held, _ = await arrivals(cut_off, 3)
        assert len(held) == 3
        proxy.drops = True
        admitted: list[Client] = []
        for _ in range(12):
            client = await Client.to(others[0].addresses[0])
            assert (await client.reply()).code == 220, "at the end it has all slots"
            admitted.append(client)
        assert fleet(cut_off[0]).state is not State.UP
        alone, _ = await arrivals(cut_off, 3)
        assert len(alone) == 3, "half of the fleet's limit, as there were two nodes"
        proxy.drops = False
        await in_state(cut_off, State.UP)
        assert cut_off[0].gate.full
        assert cut_off[0].gate.count == 6, "no session is cut"
        await close_all([*held, *alone, *admitted])


async def test_a_hanging_redis_does_not_delay_the_stop_of_a_node(redis: RedisServer) -> None:
    async with nodes(2, f"redis://127.0.0.1:{redis.port}", **OPTIONS) as servers:
        held, _ = await arrivals(servers[:1], 1)
        os.kill(redis.process.pid, SIGSTOP)
        try:
            began = time.monotonic()
            await close_all(held)
            for server in servers:
                await server.stop()
            assert time.monotonic() - began < 2 * TIMEOUT + SLACK
        finally:
            os.kill(redis.process.pid, SIGCONT)


async def test_full_nodes_with_waiting_clients_do_not_send_messages_all_the_time(
    redis: RedisServer,
) -> None:
    options = {**OPTIONS, "max_from_ip": 0, "fleet_connections": 4, "limit_connections": 100}
    async with nodes(2, f"unix:{redis.path}", **options) as servers:
        admitted = [await Client.to(servers[each % 2].addresses[0]) for each in range(4)]
        for client in admitted:
            assert (await client.reply()).code == 220
        waiting = [await Client.to(servers[each % 2].addresses[0]) for each in range(40)]
        await until(lambda: all(server.gate.has_waiters for server in servers))
        with redis.client() as client:
            calls = calls_of_scripts(client)
            began = time.monotonic()
            await asyncio.sleep(1)
            rate = (calls_of_scripts(client) - calls) / (time.monotonic() - began)
        assert rate < 2 * 50
        await close_all(admitted)
        for each in waiting[:4]:
            assert (await each.reply()).code == 220
        await close_all(waiting)


def calls_of_scripts(client: redis_py.Redis) -> int:
    return int(client.info("commandstats")["cmdstat_evalsha"]["calls"])
