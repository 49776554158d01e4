"""Idle sessions need no connections to the programs of filters."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from support.client import Client
from support.handlers import Collect
from support.server import serve

from smtpd_fork.filters import Accept, Auth, Milter, Policy, Rspamd


async def test_an_idle_session_has_no_connection_to_a_peer_of_five_filters(users: str) -> None:
    connections = 0

    def connected(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        writer.close()

    peer = await asyncio.start_server(connected, "127.0.0.1", 0)
    async with peer, AsyncExitStack() as clients:
        address = "{}:{}".format(*peer.sockets[0].getsockname())
        filters = [
            Accept(domains=["example.com"]),
            Auth(users=users, require_tls="never"),
            Policy(address),
            Milter(address),
            Rspamd([f"http://{address}"]),
            Collect(),
        ]
        async with serve(filters) as server:
            connections = 0  # the connections of the checks at the start
            tasks = len(asyncio.all_tasks())
            for _ in range(20):
                client = await clients.enter_async_context(await Client.to(server.addresses[0]))
                await client.greet()
            assert (server.sessions, connections) == (20, 0)
            assert (
                len(asyncio.all_tasks()) <= tasks + 1
            )  # the task that checks the deadlines of all sessions
            await clients.aclose()
