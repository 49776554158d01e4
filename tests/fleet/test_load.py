"""Many clients, an aggressive client, clocks that step: limits apply, and tables are bounded."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any, Self

import pytest
from support.client import PATIENCE, Client
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
from support.gates import new_gate

from smtpd_fork.fleet import Fleet, State
from smtpd_fork.fleet.address import FleetAddress
from smtpd_fork.fleet.redis_link import RedisLink
from smtpd_fork.fleet.sync import Keys
from smtpd_fork.gate import Ticket
from smtpd_fork.gate.fleet_share import MAX_KNOWN

if TYPE_CHECKING:
    from support.redis_server import RedisServer

    from smtpd_fork import Server

pytestmark = pytest.mark.peers

OPTIONS: dict[str, Any] = {"max_from_ip": 0, "fleet_timeout": 5, "fleet_lease": 2}
NODES = "{smtpd-fork}:1:nodes"
ONE = "c:127.0.0.1"


class Watch:
    """Records the maximum of sessions of all nodes; a context manager."""

    def __init__(self, servers: list[Server]) -> None:
        self._servers = servers
        self.most = 0

    async def _watch(self) -> None:
        while True:
            self.most = max(self.most, sum(server.gate.count for server in self._servers))
            await asyncio.sleep(0.001)

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


@pytest.mark.parametrize("crowd", ["even", "nine in ten to one node"])
async def test_a_thousand_clients_at_once_use_all_slots_and_never_more(
    redis: RedisServer, crowd: str
) -> None:
    options = {**OPTIONS, "fleet_connections": 200, "stress_timeout": 0, "limit_connections": 900}
    async with nodes(4, f"unix:{redis.path}", **options) as servers, Watch(servers) as watch:
        greeted: list[Client] = []
        everybody: list[Client] = []

        async def connect(number: int) -> None:
            server = servers[number % 4 if crowd == "even" or not number % 10 else 0]
            client = await Client.to(server.addresses[0])
            everybody.append(client)
            async with asyncio.timeout(2 * PATIENCE):
                if await client.reader.readline():
                    greeted.append(client)

        tasks = [asyncio.create_task(connect(number)) for number in range(1000)]
        for round_ in range(1, 6):  # until all have had their turn
            await until(lambda round_=round_: len(greeted) == 200 * round_)  # type: ignore[misc]
            leaving = greeted[200 * (round_ - 1) : 200 * round_]
            await close_all(leaving)
        await asyncio.gather(*tasks)
        assert watch.most == 200


async def test_of_a_thousand_clients_at_once_those_without_a_slot_are_refused_with_refuse(
    redis: RedisServer,
) -> None:
    options = {**OPTIONS, "fleet_connections": 200, "limit_connections": 900}
    options["when_full"] = "refuse"
    async with nodes(4, f"unix:{redis.path}", **options) as servers, Watch(servers) as watch:
        admitted, refused = await arrivals(servers, 1000)
        assert 100 <= len(admitted) <= 200
        assert all("connection limit" in each or "421" in each for each in refused)
        for _ in range(20):
            more, _ = await arrivals(servers, 20)
            admitted += more
            if len(admitted) == 200:
                break
        assert len(admitted) == 200, "clients that connect again get the other slots"
        assert watch.most == 200
        await close_all(admitted)


async def test_a_client_that_reconnects_constantly_gets_its_limit_and_rarely_reaches_redis(
    redis: RedisServer,
) -> None:
    options = {**OPTIONS, "max_from_ip": 50, "rate": ["60/h"]}
    async with nodes(4, f"unix:{redis.path}", **options) as servers:
        admitted: list[Client] = []
        refusals = 0
        with redis.client() as client:
            for _ in range(10):
                more, refused = await arrivals(servers, 100)
                admitted += more
                refusals += len(refused)
            asked = Counter[str]()
            for server in servers:
                asked.update(fleet(server).counts.outcomes)
            assert len(admitted) == 50
            assert refusals == 950
            assert asked["refused"] < refusals / 2, "most were refused without a question"
            await close_all(admitted)
            await wait_until_all_sent(servers)
            await until(lambda: sum(server.gate.count for server in servers) == 0)
            await wait_until_all_sent(servers)
            await until(lambda: sessions_in(client, ONE) == 0)
        again: list[Client] = []
        for _ in range(3):
            more, _ = await arrivals(servers, 40)
            again += more
        assert len(again) == 10, "ten of sixty per hour were left"
        await close_all(again)


async def test_twenty_thousand_clients_leave_nothing_in_a_node_and_little_in_redis(
    redis: RedisServer,
) -> None:
    shared = new_gate(max_from_ip=2, rate="100/h", limit_connections=10_000)
    link = RedisLink(FleetAddress.parse(f"unix:{redis.path}"), Keys("smtpd-fork"))
    answers = Counter[bool]()
    tickets: list[Ticket] = []

    def answered(refusal: object) -> None:
        answers[refusal is None] += 1

    number, pieces = 5_000, 4
    with redis.client() as client:
        empty = client.info("memory")["used_memory"]
        async with Fleet(shared, link, node="mx", timeout=10) as node:
            share = node.share
            for piece in range(pieces):
                for each in range(number):
                    verdict = shared.admit(f"10.{piece}.{each >> 8}.{each & 255}")
                    assert isinstance(verdict, Ticket)
                    tickets.append(verdict)
                    node.ask(verdict, answered)
                await until(lambda piece=piece: answers.total() == (piece + 1) * number)  # type: ignore[misc]
                held = client.info("memory")["used_memory"]
                for ticket in tickets:
                    ticket.release()
                tickets.clear()
                await until(lambda: not share.changed and not node.node.has_unsent())
            assert answers == {True: number * pieces}
            await until(lambda: node.node.waiting_since() is None)
            assert (share.held, share.over, share.refused_sessions) == ({}, {}, {})
            assert not node.node._sent
            each = (held - empty) / number / pieces
            assert each < 2 * 400, "bytes per client with a session and a rate"
            assert client.keys("*:c:*") == []
            some = [key for key, _ in zip(client.scan_iter("*:r:*"), range(100), strict=False)]
            assert all(0 < client.pttl(key) <= 36_000 for key in some), "a hundredth of an hour"
            for each_over in range(2 * MAX_KNOWN):
                share.mark_over(f"c:{each_over}", 3, 1e9)
            assert len(share.over) <= MAX_KNOWN


@pytest.mark.parametrize("step", [3_600_000, -3_600_000], ids=["back", "forth"])
async def test_a_step_of_the_clock_of_redis_removes_dead_nodes_and_keeps_live_ones(
    redis: RedisServer, caplog: pytest.LogCaptureFixture, step: int
) -> None:
    options = {**OPTIONS, "max_from_ip": 5, "fleet_connections": 20}
    async with nodes(2, f"unix:{redis.path}", **options) as servers:
        admitted, _ = await arrivals(servers, 5)
        with redis.client() as client:
            client.zadd(NODES, {"dead": client.zscore(NODES, fleet(servers[0]).node.name)})
            client.hset("{smtpd-fork}:1:slots", "dead", "9 9")
            # A clock that was set back by an hour: all that was written is an hour too late.
            for name, ends in client.zrange(NODES, 0, -1, withscores=True):
                client.zadd(NODES, {name: ends + step})
            slots = "{smtpd-fork}:1:slots"
            await until(lambda: client.zcard(NODES) == 2 and client.hlen(slots) == 2)
            await until(lambda: sessions_in(client, ONE) == 5)
            assert (await arrivals(servers, 4))[0] == []
        await in_state(servers, State.UP)
        assert outage_lines(caplog) == []
        await close_all(admitted)
