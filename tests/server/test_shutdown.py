"""The stop of a server: clients get 421, messages may finish, and nothing is left behind."""

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


async def test_idle_sessions_get_421_at_a_stop() -> None:
    async with serve(Discard()) as server:
        client = await Client.to(server.addresses[0])
        await client.greet()
        stop = asyncio.ensure_future(server.stop())
        assert await client.reply() == (421, ["4.3.2 mx.example.com Service shutting down"])
        assert await client.ended()
        assert await stop == 0
        await client.close()


async def test_clients_in_the_backlog_get_421_at_a_stop() -> None:
    async with serve(Discard(), limit_connections=1) as server:
        first = await Client.to(server.addresses[0])
        await first.greet()
        waiting = [await Client.to(server.addresses[0]) for _ in range(10)]
        await server.stop()
        for client in [first, *waiting]:
            assert (await client.reply()).code == 421
            await client.close()


async def test_clients_that_wait_for_a_slot_get_421_at_a_stop() -> None:
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


async def test_a_stop_waits_for_a_message_in_progress() -> None:
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


async def test_a_stop_cuts_sessions_that_do_not_finish_in_time() -> None:
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


async def test_a_stop_ends_tls_handshakes(certificates: Certificates) -> None:
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


async def test_a_cancelled_stop_cuts_the_sessions_and_frees_all_slots() -> None:
    async with serve(Discard()) as server, await Client.to(server.addresses[0]) as client:
        await client.greet()
        await client.say("MAIL FROM:<a@b.c>", "RCPT TO:<d@e.f>", "DATA")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(server.stop(60), 0.1)
        assert await client.ended()


async def test_concurrent_stops_end_together() -> None:
    async with serve(Discard()) as server, await Client.to(server.addresses[0]) as client:
        await client.greet()
        assert list(await asyncio.gather(server.stop(), server.stop())) == [0, 0]


async def test_a_handle_disconnect_that_never_began_does_not_delay_a_stop() -> None:
    class Polite(Discard):
        async def handle_DISCONNECT(self, server: Any, session: Any) -> None:
            await asyncio.sleep(0)

    async with Server(Polite(), listen=["127.0.0.1:0"]) as server:
        client = await Client.to(server.addresses[0])
        await client.greet()
        (session,) = running(server).sessions._tickets
        session.connection_lost(None)
        assert session.task is not None
        session.task.cancel()  # like a stop whose time limit has passed
        for _ in range(5):
            await asyncio.sleep(0)
        assert not running(server).sessions._finishing
        await client.close()


async def test_after_a_stop_the_port_is_free_again() -> None:
    async with serve(Discard()) as server:
        address = server.addresses[0]
    async with serve(Discard(), listen=[f"127.0.0.1:{address[1]}"]):
        pass


def test_a_loop_that_cancels_all_tasks_leaves_no_slot_in_use() -> None:
    """asyncio.run() does this at a KeyboardInterrupt, here while a client connects."""
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


async def test_a_task_that_is_cancelled_before_it_ran_frees_its_slot(
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


async def test_a_stop_with_an_invalid_timeout_is_an_error_and_can_be_repeated() -> None:
    timeout: Any = "5"
    async with serve(Discard()) as server, await Client.to(server.addresses[0]) as client:
        await client.greet()
        with pytest.raises(TypeError, match="timeout must be a number of seconds, not str"):
            await server.stop(timeout)
        assert (await client.say("NOOP")).code == 250
        await server.stop(5)
        assert (await client.reply()).code == 421
