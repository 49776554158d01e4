"""Clients that a trusted host names by XCLIENT have limits on all nodes of a fleet together."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from support.client import Client
from support.fleet import close_all, nodes, until, wait_until_all_sent

if TYPE_CHECKING:
    from support.redis_server import RedisServer

    from smtpd_fork import Server

TRUST = {"xclient_trust": ["127.0.0.1"]}


async def named(server: Server, host: str) -> tuple[Client, int]:
    client = await Client.to(server.addresses[0])
    await client.greet()
    return client, (await client.say(f"XCLIENT ADDR={host}")).code


async def test_the_limit_of_a_named_client_applies_to_two_nodes_together(
    redis: RedisServer,
) -> None:
    async with nodes(2, f"unix:{redis.path}", max_from_ip=3, **TRUST) as servers:
        found = await asyncio.gather(*(named(servers[n % 2], "198.51.100.7") for n in range(10)))
        inside = [client for client, code in found if code == 220]
        assert sorted(code for _, code in found) == [220] * 3 + [421] * 7
        await until(lambda: sum(server.gate.count for server in servers) == 3)
        await wait_until_all_sent(servers)
        assert (await inside[0].say("XCLIENT ADDR=198.51.100.8")).code == 220
        await wait_until_all_sent(servers)
        more, code = await named(servers[1], "198.51.100.7")
        assert code == 220
        again, code = await named(servers[0], "198.51.100.7")
        assert code == 421
        await close_all([*(client for client, _ in found), more, again])
        for server in servers:
            await until(lambda server=server: server.gate.count == 0)  # type: ignore[misc]  # default


async def test_a_client_that_disconnects_while_its_question_is_pending_is_not_counted(
    redis: RedisServer,
) -> None:
    async with nodes(1, f"unix:{redis.path}", max_from_ip=3, **TRUST) as (server,):
        for _ in range(20):
            client = await Client.to(server.addresses[0])
            await client.greet()
            client.send("XCLIENT ADDR=198.51.100.7\r\nXCLIENT ADDR=198.51.100.8\r\n")
            client.reset()
            await client.close()
        await until(lambda: server.gate.count == 0)
        await wait_until_all_sent([server])
        found = [await named(server, "198.51.100.7") for _ in range(4)]
        assert [code for _, code in found] == [220, 220, 220, 421]
        await close_all([client for client, _ in found])
