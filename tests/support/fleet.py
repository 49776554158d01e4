"""A fleet of servers in the test's event loop, and clients that connect to all of them."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from inspect import isfunction
from typing import TYPE_CHECKING, Any

from smtpd_fork.fleet import Fleet
from smtpd_fork.fleet.address import FleetAddress
from smtpd_fork.fleet.redis_link import RedisLink
from smtpd_fork.fleet.sync import Keys
from support.client import PATIENCE, Client
from support.gates import new_gate
from support.server import serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    import pytest
    import redis

    from smtpd_fork import Gate, Server
    from smtpd_fork.fleet import State


class Taker:
    """A handler that accepts every message."""

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        return "250 2.0.0 taken"


@asynccontextmanager
async def nodes(
    number: int, url: str, handler: Any = None, **options: Any
) -> AsyncIterator[list[Server]]:
    """Start the servers of a fleet; at the end each has left it.

    :param handler: of all of them, or a function that returns one for each
    """
    options.setdefault("max_from_net", ["0"])
    options.setdefault("fleet_timeout", 5)  # A delay on a busy machine must not count as an outage.
    async with AsyncExitStack() as stack:
        servers = []
        for index in range(number):
            options["fleet_node"] = f"mx{index}"
            server = await stack.enter_async_context(
                serve(
                    handler() if isfunction(handler) else handler or Taker(), fleet=url, **options
                )
            )
            assert server.fleet is not None
            servers.append(server)
        yield servers


async def arrivals(
    servers: list[Server], number: int, **options: Any
) -> tuple[list[Client], list[str]]:
    """Connect clients concurrently, spread over the servers in turn.

    :returns: the clients that were greeted, and the replies to the others
    """
    admitted: list[Client] = []
    refused: list[str] = []

    async def connect(server: Server) -> None:
        client = await Client.to(server.addresses[0], **options)
        reply = await client.reply()
        if reply.code == 220:
            admitted.append(client)
        else:
            refused.append(f"{reply.code} {reply.text}")
            await client.close()

    await asyncio.gather(*(connect(servers[each % len(servers)]) for each in range(number)))
    return admitted, refused


def outage_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the log lines about the beginning and the end of outages of the fleet."""
    return [
        f"{record.levelname} {record.getMessage()}"
        for record in caplog.records
        if record.name == "smtpd_fork.fleet"
        and record.levelno >= logging.WARNING
        and " reach" in record.getMessage()
    ]


def fleet(server: Server) -> Fleet:
    """Return the fleet of a server that belongs to one."""
    assert server.fleet is not None
    return server.fleet


async def in_state(servers: Iterable[Server], state: State) -> None:
    """Wait until all nodes are in a state."""
    await until(lambda: all(fleet(server).state is state for server in servers))


def sessions_in(client: redis.Redis, key: str, prefix: str = "smtpd-fork") -> int:
    """Return the sessions of a key in Redis, over all nodes."""
    return sum(map(int, client.hgetall(f"{{{prefix}}}:1:{key}").values()))


async def close_all(clients: Iterable[Client]) -> None:
    await asyncio.gather(*(client.close() for client in clients))


async def until(condition: Callable[[], object]) -> None:
    """Poll until a condition is true that has no event."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.005)


def _has_sent_all(server: Server) -> bool:
    node = fleet(server).node
    return node.waiting_since() is None and not node.has_unsent()


async def wait_until_all_sent(servers: list[Server]) -> None:
    """Wait until each node has sent all its counts."""
    for server in servers:
        await until(partial(_has_sent_all, server))


def own_fleet(url: str, shared: Gate | None = None, **options: Any) -> Fleet:
    """Return a node without a server.

    :param shared: its gate; default: a new one
    """
    link = RedisLink(FleetAddress.parse(url), Keys("smtpd-fork"))
    settings = {"timeout": 0.2, "lease": 2, **options}
    return Fleet(shared or new_gate(max_from_ip=5), link, node="mx", **settings)
