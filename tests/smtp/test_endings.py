"""Endings: half-closed, reset or interrupted, a session ends and its handler is called."""

from __future__ import annotations

import asyncio
import logging
import socket
from functools import partial
from typing import Any

import pytest
from support.client import MAIL, Client
from support.handlers import Collect
from support.server import greeted, running, serve, until

from smtpd_fork.sinks import Discard
from smtpd_fork.smtp.ending import time_out

# -- resets ------------------------------------------------------------------------------------


async def test_a_reset_that_the_loop_has_not_noticed_is_not_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """asyncio raises an error when the session closes its half after 421."""

    class Closes(Discard):
        async def handle_NOOP(self, *_: Any) -> str:
            client.close()  # so that the system resets the connection when it receives a reply
            return "250 2.0.0 Ok"

    caplog.set_level(logging.INFO)
    async with serve(Closes()) as server:
        address: Any = server.addresses[0]
        client = socket.create_connection(address)
        await asyncio.to_thread(client.recv, 512)  # the greeting
        client.sendall(b"NOOP\r\n" + b"nonsense\r\n" * 30)
        await until(lambda: "Too many errors" in caplog.text)
        await until(lambda: not server.gate.count)
    assert "failed" not in caplog.text


# -- the end of input --------------------------------------------------------------------------


async def test_a_client_that_half_closes_after_its_final_dot_is_still_served() -> None:
    class Slow(Collect):
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
            await until(lambda: server.connection.ended_input)
            return await super().handle_DATA(server, session, envelope)

    handler = Slow()
    async with serve(handler) as server, await Client.to(server.addresses[0]) as client:
        client.send(
            "EHLO x\r\nMAIL FROM:<a@b.c>\r\nRCPT TO:<d@e.f>\r\nDATA\r\nhello\r\n.\r\nQUIT\r\n"
        )
        client.writer.write_eof()
        codes = [(await client.reply()).code for _ in range(7)]
        assert codes == [220, 250, 250, 250, 354, 250, 221]
        assert await client.ended()
    assert handler.messages == [b"hello\r\n"]


async def test_eof_before_the_final_dot_discards_the_message() -> None:
    handler = Collect()
    async with greeted(handler) as client:
        await client.say("MAIL FROM:<a@b.c>", "RCPT TO:<d@e.f>", "DATA")
        client.send("hello\r\n")
        client.writer.write_eof()
        assert await client.ended()
    assert handler.messages == []


async def test_a_reset_during_a_hook_does_not_cancel_the_handler() -> None:
    in_hand, go_on = asyncio.Event(), asyncio.Event()

    class Slow(Collect):
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
            in_hand.set()
            await go_on.wait()
            return await super().handle_DATA(server, session, envelope)

    handler = Slow()
    async with serve(handler) as server:
        client = await Client.to(server.addresses[0])
        await client.greet()
        await client.say("MAIL FROM:<a@b.c>", "RCPT TO:<d@e.f>", "DATA")
        client.send("hello\r\n.\r\n")
        await in_hand.wait()
        client.reset()
        await until(lambda: not server.gate.count)
        go_on.set()
    assert handler.messages == [b"hello\r\n"]


# -- the end of the task -----------------------------------------------------------------------


@pytest.mark.parametrize("gone", ["lost", "cut", "timed out"])
async def test_disconnect_is_called_if_a_session_ends_before_its_task_begins(gone: str) -> None:
    """A task that is cancelled before its first step runs no code, not even a finally block."""
    told: list[str] = []

    class Told(Discard):
        async def handle_MAIL(self, *_: Any) -> str:
            await asyncio.sleep(0)  # a hook without an await would need no task
            return "250 2.1.0 Ok"

        async def handle_DISCONNECT(self, server: Any, session: Any) -> None:
            told.append("disconnect")

    async with serve(Told()) as server, await Client.to(server.addresses[0]) as client:
        await client.greet()
        (session,) = running(server).sessions._tickets
        session.data_received(f"{MAIL}\r\n".encode())
        assert session.task is not None
        if gone == "lost":
            session.abort()
            session.connection_lost(None)
        elif gone == "cut":
            session.cut()
        else:
            time_out(session)
        async with asyncio.timeout(5):
            await session.ended
            await until(lambda: not server.sessions)
            await until(lambda: told)
    assert told == ["disconnect"]


# -- interruption ------------------------------------------------------------------------------


async def test_an_interrupted_client_can_send_all_and_then_gets_the_reply() -> None:
    """Closing while a client sends would be a reset: the client could not finish sending."""

    def talk(address: tuple[str, int]) -> bytes:
        with socket.create_connection(address, timeout=20) as sock:
            sock.sendall(b"nonsense\r\n" * 300_000)
            return b"".join(iter(partial(sock.recv, 65536), b""))

    async with serve(Discard(), max_errors=3) as server:
        said = await asyncio.to_thread(talk, ("127.0.0.1", server.port))
        assert [line[:3] for line in said.splitlines()] == [b"220", *[b"500"] * 3, b"421"]


async def test_an_interrupted_client_that_keeps_sending_is_disconnected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("smtpd_fork.smtp.ending.HALF_CLOSED_SECONDS", 0.05)
    async with serve(Discard(), max_errors=3, timeout=0.5) as server:
        client = await Client.to(server.addresses[0])
        with pytest.raises(ConnectionError):
            while True:
                client.send(b"nonsense\r\n" * 1000)
                await client.writer.drain()
        await client.close()
