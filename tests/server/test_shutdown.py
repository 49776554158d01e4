"""The stop of a server: who is told, what may finish, what is cut, and that nothing is left."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any

import pytest
from support.client import Client
from support.server import running, serve, until

from smtpd_fork import Gate, Server
from smtpd_fork.server.sessions import Sessions
from smtpd_fork.sinks import Discard

if TYPE_CHECKING:
    from support.tls import Certificates


async def test_a_stop_tells_idle_sessions_421() -> None:
    async with serve(Discard()) as server:
        client = await Client.to(server.addresses[0])
        await client.greet()
        stop = asyncio.ensure_future(server.stop())
        assert await client.reply() == (421, ["4.3.2 mx.example.com Service shutting down"])
        assert await client.ended()
        assert await stop == 0
        await client.close()


async def test_a_stop_tells_clients_in_the_backlog_421() -> None:
    async with serve(Discard(), limit_connections=1) as server:
        first = await Client.to(server.addresses[0])
        await first.greet()
        waiting = [await Client.to(server.addresses[0]) for _ in range(10)]
        await server.stop()
        for client in [first, *waiting]:
            assert (await client.reply()).code == 421
            await client.close()


async def test_a_stop_tells_clients_in_the_waiting_room_421() -> None:
    async with serve(Discard(), limit_connections=1, when_full="defer:60") as server:
        first = await Client.to(server.addresses[0])
        await first.greet()
        waiting = [await Client.to(server.addresses[0]) for _ in range(3)]
        await asyncio.sleep(0.05)
        await server.stop()
        for client in waiting:
            assert (await client.reply()).text.endswith("shutting down")
            await client.close()
        await first.close()


async def test_a_stop_lets_a_message_in_flight_finish() -> None:
    async with serve(Discard()) as server, await Client.to(server.addresses[0]) as client:
        await client.greet()
        await client.say("MAIL FROM:<a@b.c>", "RCPT TO:<d@e.f>", "DATA")
        client.send("half of\r\n")
        stop = asyncio.ensure_future(server.stop())
        await asyncio.sleep(0.05)
        client.send("it\r\n.\r\n")
        assert (await client.reply()).code == 250
        assert (await client.reply()).code == 421
        assert await client.ended()
        assert await stop == 0


async def test_a_stop_cuts_what_does_not_finish_in_time() -> None:
    async with serve(Discard()) as server, await Client.to(server.addresses[0]) as client:
        await client.greet()
        await client.say("MAIL FROM:<a@b.c>", "RCPT TO:<d@e.f>", "DATA")
        assert await server.stop(0.1) == 1
        assert server.gate.count == 0
        assert await client.ended()


async def test_a_stop_cancels_a_handler_that_does_not_finish_in_time() -> None:
    called, cancelled = asyncio.Event(), asyncio.Event()

    class Stuck:
        async def handle_DATA(self, *_: Any) -> str:
            called.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.set()
                raise
            return "250 never"

    async with serve(Stuck()) as server, await Client.to(server.addresses[0]) as client:
        await client.greet()
        await client.say("MAIL FROM:<a@b.c>", "RCPT TO:<d@e.f>", "DATA")
        client.send("x\r\n.\r\n")
        await called.wait()
        assert await server.stop(0.1) == 1
    assert cancelled.is_set()


async def test_a_stop_ends_handshakes(certificates: Certificates) -> None:
    options = {"listen": ["127.0.0.1:0", "smtps:127.0.0.1:0"], "tls_context": certificates.server}
    async with serve(Discard(), **options) as server:
        plain, implicit = server.addresses
        starttls = await Client.to(plain)
        await starttls.greet()
        await starttls.say("STARTTLS")
        idle = await Client.to(implicit)
        await until(lambda: server.gate.count >= 2)
        assert await server.stop() == 0
        assert await starttls.ended()
        assert await idle.ended()
        await starttls.close()
        await idle.close()


async def test_a_stop_that_is_cancelled_cuts_and_gives_every_place_back() -> None:
    async with serve(Discard()) as server, await Client.to(server.addresses[0]) as client:
        await client.greet()
        await client.say("MAIL FROM:<a@b.c>", "RCPT TO:<d@e.f>", "DATA")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(server.stop(60), 0.1)
        assert await client.ended()


async def test_two_stops_end_together() -> None:
    async with serve(Discard()) as server, await Client.to(server.addresses[0]) as client:
        await client.greet()
        assert list(await asyncio.gather(server.stop(), server.stop())) == [0, 0]


async def test_a_farewell_that_is_cancelled_before_it_began_holds_up_no_stop() -> None:
    class Polite(Discard):
        async def handle_DISCONNECT(self, server: Any, session: Any) -> None:
            await asyncio.sleep(0)

    async with Server(Polite(), listen=["127.0.0.1:0"]) as server:
        client = await Client.to(server.addresses[0])
        await client.greet()
        (session,) = running(server).sessions._tickets
        session.connection_lost(None)
        assert session.task is not None
        session.task.cancel()  # as a stop that has no time left does
        for _ in range(5):
            await asyncio.sleep(0)
        assert not running(server).sessions._finishing
        await client.close()


async def test_after_a_stop_the_port_is_free_again() -> None:
    async with serve(Discard()) as server:
        address = server.addresses[0]
    async with serve(Discard(), listen=[f"127.0.0.1:{address[1]}"]):
        pass


def test_a_loop_that_cancels_everything_leaves_no_place_taken() -> None:
    """What asyncio.run() does at a KeyboardInterrupt, in the middle of connecting."""
    gate = Gate()

    async def main() -> None:
        async with Server(Discard(), gate=gate, listen=["127.0.0.1:0"], shutdown_timeout=0.1) as s:
            clients.extend(socket.create_connection(("127.0.0.1", s.port)) for _ in range(5))
            while gate.count < 5:
                await asyncio.sleep(0)
            for task in asyncio.all_tasks():
                task.cancel()
            await asyncio.sleep(60)

    clients: list[socket.socket] = []
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())
    assert gate.count == 0
    for client in clients:
        client.close()


async def test_a_task_that_is_cancelled_before_it_ran_gives_its_place_back(
    monkeypatch: pytest.MonkeyPatch, certificates: Certificates
) -> None:
    begin = Sessions.begin

    def begin_and_cancel(self: Sessions, *args: Any) -> None:
        begin(self, *args)
        for task in self._handshakes:
            task.cancel()

    monkeypatch.setattr(Sessions, "begin", begin_and_cancel)
    options: dict[str, Any] = {"listen": ["smtps:127.0.0.1:0"], "tls_context": certificates.server}
    async with (
        serve(Discard(), **options) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        assert await client.ended()
        assert server.gate.count == 0


async def test_a_stop_with_a_timeout_that_is_no_number_is_an_error_and_another_one_stops() -> None:
    timeout: Any = "5"
    async with serve(Discard()) as server, await Client.to(server.addresses[0]) as client:
        await client.greet()
        with pytest.raises(TypeError, match="timeout must be a number of seconds, not str"):
            await server.stop(timeout)
        assert (await client.say("NOOP")).code == 250
        await server.stop(5)
        assert (await client.reply()).code == 421
