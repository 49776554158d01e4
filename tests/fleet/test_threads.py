"""A fleet with other threads: a stock Controller behind Gate.wrap, and a server."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

from aiosmtpd.controller import Controller
from support.client import Client
from support.fleet import (
    Taker,
    arrivals,
    close_all,
    fleet,
    nodes,
    sessions_in,
    until,
    wait_until_all_sent,
)
from support.gates import new_gate
from support.ports import free_port
from support.server import serve

from smtpd_fork.fleet import Fleet
from smtpd_fork.fleet.address import FleetAddress
from smtpd_fork.fleet.redis_link import RedisLink
from smtpd_fork.fleet.sync import Keys

if TYPE_CHECKING:
    from support.redis_server import RedisServer

    from smtpd_fork import Gate, Server

OPTIONS: dict[str, Any] = {"max_from_ip": 5, "fleet_timeout": 5, "fleet_lease": 2}
ONE = "c:127.0.0.1"


def fleet_of(shared: Gate, redis: RedisServer) -> Fleet:
    link = RedisLink(FleetAddress.parse(f"unix:{redis.path}"), Keys("smtpd-fork"))
    return Fleet(shared, link, node="mx", lease=2, timeout=5)


class Gated(Controller):
    """aiosmtpd's server behind a gate, in a thread and a loop of its own."""

    def __init__(self, shared: Gate) -> None:
        port = free_port("127.0.0.1")
        super().__init__(Taker(), "127.0.0.1", port, server_hostname="mx.example.com")
        self._gate = shared

    def factory(self) -> Any:
        return self._gate.wrap(super().factory)()


async def test_sessions_of_a_stock_controller_are_counted_in_the_fleet(
    redis: RedisServer,
) -> None:
    shared = new_gate(max_from_ip=5)
    async with fleet_of(shared, redis) as node, nodes(1, f"unix:{redis.path}", **OPTIONS) as other:
        controller = Gated(shared)
        await asyncio.to_thread(controller.start)
        try:
            address = ("127.0.0.1", controller.port)
            clients = [await Client.to(address) for _ in range(3)]
            for client in clients:
                assert (await client.reply()).code == 220
            with redis.client() as client_of_redis:
                await until(lambda: sessions_in(client_of_redis, ONE) == 3)
            admitted, refused = await arrivals(other, 4)
            assert (len(admitted), len(refused)) == (2, 2)
            last = await Client.to(address)
            replies = [(await last.reply()).code for _ in range(2)]
            assert replies in ([220, 421], [421, 0]), "it is disconnected, or refused by the limit"
            again = await Client.to(address)
            assert (await again.reply()).code == 421, "the gate remembers it for a moment"
            await close_all([*clients, *admitted, last, again])
            await until(lambda: shared.count == 0)
            with redis.client() as client_of_redis:
                await until(lambda: sessions_in(client_of_redis, ONE) == 0)
            assert node.share.held == {}
        finally:
            await asyncio.to_thread(controller.stop)


async def test_a_server_in_another_thread_asks_the_fleet_of_its_shared_gate(
    redis: RedisServer,
) -> None:
    shared = new_gate(max_from_ip=5)
    ready, end = threading.Event(), threading.Event()
    found: list[Server] = []

    async def elsewhere() -> None:
        async with serve(Taker(), gate=shared) as server:
            found.append(server)
            ready.set()
            await asyncio.to_thread(end.wait)

    async with fleet_of(shared, redis) as node, nodes(1, f"unix:{redis.path}", **OPTIONS) as other:
        running = asyncio.create_task(asyncio.to_thread(asyncio.run, elsewhere()))
        try:
            await asyncio.to_thread(ready.wait)
            (server,) = found
            assert server.fleet is node
            admitted, refused = await arrivals([server, *other], 14)
            assert (len(admitted), len(refused)) == (5, 9)
            await close_all(admitted)
            await until(lambda: shared.count == 0)
            await wait_until_all_sent(other)
            with redis.client() as client:
                await until(lambda: sessions_in(client, ONE) == 0)
            assert fleet(other[0]).share.held == node.share.held == {}
        finally:
            end.set()
            await running
