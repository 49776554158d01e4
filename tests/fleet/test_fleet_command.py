"""``smtpd-fork fleet``, and the fleet in status, explain and the status page."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from support.control import CONTROL, says
from support.daemon import LOCAL, Daemon
from support.fleet import Taker, arrivals, close_all, nodes, until, wait_until_all_sent
from support.redis_server import RedisServer
from support.server import serve

import smtpd_fork.control_protocol as protocol
from smtpd_fork.control_protocol import RequestError
from smtpd_fork.fleet.view import MOST_NODES, read_view
from smtpd_fork.observe.control import Administration

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from smtpd_fork import Server


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


async def asked(server: Server, request: protocol.Request) -> dict[str, Any]:
    return await Administration(server, lambda _: None).answer(request, "a test")


async def test_the_counts_of_a_client_are_shown_by_node_with_its_rates_and_networks(
    redis: RedisServer,
) -> None:
    limits = {"max_from_ip": 5, "max_from_net": ["9/24"], "rate": ["30/h"]}
    async with nodes(2, f"unix:{redis.path}", **limits) as servers:
        admitted, refused = await arrivals(servers, 6)
        assert (len(admitted), len(refused)) == (5, 1)
        await wait_until_all_sent(servers)
        reply = await asked(servers[0], protocol.Fleet(v=1, client="127.0.0.1"))
        client, network, rate = reply["limits"]
        assert (client["rule"], client["key"], client["sessions"]) == (
            "max_from_ip",
            "127.0.0.1",
            5,
        )
        assert sum(client["nodes"].values()) == 5
        assert client["nodes"].keys() == {"mx0", "mx1"}
        assert (network["rule"], network["key"], network["limit"]) == (
            *("max_from_net", "127.0.0.0/24"),
            9,
        )
        assert (rate["rule"], rate["sessions"], rate["limit"]) == ("rate", 5, 30)
        only = await asked(servers[1], protocol.Fleet(v=1, client="127.0.0.0/24"))
        assert only["limits"] == [network]
        with pytest.raises(RequestError, match="no limit of the fleet counts it"):
            await asked(servers[0], protocol.Fleet(v=1, client="127.0.0.0/25"))
        with pytest.raises(RequestError, match="not a network"):
            await asked(servers[0], protocol.Fleet(v=1, client="nobody"))
        explained = await asked(
            servers[0] if servers[0].gate.stats()["refused"] else servers[1],
            protocol.Explain(v=1, id=refused[0].rpartition("[")[2].rstrip("]")),
        )
        assert explained["nodes"] == client["nodes"]
        await close_all(admitted)


async def test_all_nodes_are_listed_even_in_a_large_fleet(redis: RedisServer) -> None:
    async with nodes(2, f"unix:{redis.path}", fleet_connections=20) as servers:
        admitted, _ = await arrivals(servers, 1)
        await wait_until_all_sent(servers)
        reply = await asked(servers[0], protocol.Fleet(v=1))
        assert {(each["name"], each["own"]) for each in reply["nodes"]} == {
            *(("mx0", True), ("mx1", False)),
        }
        assert sum(each["sessions"] for each in reply["nodes"]) == 1
        assert all(0 < each["lease"] <= 6 and each["pid"] for each in reply["nodes"])
        fleet = servers[0].fleet
        assert fleet is not None
        with redis.client() as client:
            (name,) = client.keys("*:1:nodes")
            more = {f"x{n}-abc": 9e15 for n in range(2 * MOST_NODES)}
            client.zadd(name, more)
        found = (await read_view(fleet._link)).nodes
        assert len({each.node for each in found}) == 2 * MOST_NODES + 2
        with redis.client() as client:
            client.zrem(name, *more)
        await close_all(admitted)


async def test_a_fleet_that_is_out_of_reach_is_reported_as_down(redis: RedisServer) -> None:
    async with nodes(1, f"unix:{redis.path}", when_fleet_down="refuse") as (server,):
        fleet = server.fleet
        assert fleet is not None
        redis.kill()
        await until(lambda: not fleet.admits)
        reply = await asked(server, protocol.Fleet(v=1))
        assert (reply["nodes"], reply["fleet"].state) == ([], "down")
        assert reply["fleet"].reason
        with pytest.raises(RequestError, match="the fleet is out of reach"):
            await asked(server, protocol.Fleet(v=1, client="127.0.0.1"))
        redis.start()


async def test_the_answer_of_a_server_without_a_fleet_says_so() -> None:
    async with serve(Taker()) as server:
        with pytest.raises(RequestError, match="without --fleet"):
            await asked(server, protocol.Fleet(v=1))


def test_the_command_prints_nodes_and_clients(redis: RedisServer, tmp_path: Path) -> None:
    options = ("--fleet", f"unix:{redis.path}", "--fleet-node", "mx1", "--fleet-connections", "9")
    with Daemon(*LOCAL, *CONTROL, *options, cwd=tmp_path) as daemon, daemon.smtp():
        header, node, fleet = says(tmp_path, "fleet").splitlines()
        assert header.split()[:3] == ["NODE", "HOST", "PID"]
        assert re.match(rf"mx1 +\S+ +{daemon.process.pid} .* this node$", node)
        assert re.match(r"fleet +up, 1 node, 1 of 9 sessions, \d+ slots? here, round trip", fleet)
        assert re.search(r"^fleet +up, 1 node, 1 of 9", says(tmp_path, "status"), re.MULTILINE)
        assert says(tmp_path, "fleet", "127.0.0.1") == "max_from_ip   127.0.0.1: 1 of 50 (mx1 1)\n"
        assert json.loads(says(tmp_path, "fleet", "--json"))["fleet"]["state"] == "up"
        assert json.loads(says(tmp_path, "status", "--json"))["fleet"]["nodes"] == 1
