"""SocketPoll: the events that transports get, and their order."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any

from support.server import until
from support.transport import LOST, Recorder, begun, pair

from smtpd_fork.smtp.socket_poll import READ, SocketPoll
from smtpd_fork.smtp.socket_transport import READS_A_TURN


async def test_nothing_is_received_before_tasks_of_connection_made_have_started() -> None:
    """A handle_CONNECT in a task is called before a reset of the client ends the session."""
    poll = SocketPoll(asyncio.get_running_loop())
    order = []

    class Starts(Recorder):
        def connection_made(self, transport: Any) -> None:
            async def start() -> None:
                order.append("started")

            self.task = asyncio.get_running_loop().create_task(start())

        def data_received(self, data: bytes) -> None:
            order.append("received")

    with pair() as (ours, theirs):
        theirs.send(b"x")
        transport = begun(poll, ours, Starts())
        poll._notify()  # as it comes in the turn of an accept, if others have sent something
        await until(lambda: len(order) == 2)
        assert order == ["started", "received"]
        transport.abort()
        await asyncio.sleep(0)
    poll.close()


async def test_an_event_for_a_reused_descriptor_has_no_effect(
    poll: SocketPoll,
) -> None:
    third = Recorder()

    class Replaces(Recorder):
        """Closes the other socket, and creates one that gets its descriptor, in one iteration."""

        def __init__(self) -> None:
            super().__init__()
            self.other: Any = None

        def data_received(self, data: bytes) -> None:
            if third.transport is None:
                number = self.other.get_extra_info("socket").fileno()
                self.other.abort()
                os.dup2(new.fileno(), number)
                begun(poll, socket.socket(fileno=number), third)

    with pair() as (first, one), pair() as (second, two), pair() as (new, three):
        a, b = Replaces(), Replaces()
        a.other, b.other = begun(poll, second, b), begun(poll, first, a)
        await asyncio.sleep(0)
        one.send(b"x")
        two.send(b"x")
        await until(lambda: LOST in a.events + b.events)
        await asyncio.sleep(0.02)
        assert third.events == ["made"]
        assert third.data == b""
        three.send(b"z")
        await until(lambda: third.data == b"z")
        for each in (a, b, third):
            each.transport.abort()
        await asyncio.sleep(0)


async def test_a_socket_inherited_by_a_child_process_leaves_the_epoll() -> None:
    poll = SocketPoll(asyncio.get_running_loop())
    with pair() as (ours, theirs):
        transport = begun(poll, ours, Recorder())
        await asyncio.sleep(0)
        copy = os.dup(ours.fileno())
        transport.abort()
        theirs.send(b"nobody reads this")
        assert poll._epoll.poll(0) == []
        os.close(copy)
        await asyncio.sleep(0)
    poll.close()


async def test_a_client_that_sends_endlessly_does_not_delay_others(poll: SocketPoll) -> None:
    reads = 0

    class Counts(Recorder):
        def data_received(self, data: bytes) -> None:
            nonlocal reads
            reads += 1

    class Endless:
        """A socket that always has a full buffer."""

        def __init__(self, sock: socket.socket) -> None:
            self.sock = sock

        def recv_into(self, view: memoryview) -> int:
            return len(view)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.sock, name)

    with pair() as (ours, _theirs):
        transport = begun(poll, Endless(ours), Counts())  # type: ignore[arg-type]  # as much of one
        transport.act(READ)
        assert reads == READS_A_TURN
        transport.abort()
        await asyncio.sleep(0)
