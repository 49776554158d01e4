"""Kick: a client in any phase gets 421 if it can read it, and its connection is closed."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any

import pytest
from support.client import MAIL, RCPT, Client
from support.handlers import Collect, Notes
from support.server import serve, until

from smtpd_fork.sinks import Discard

if TYPE_CHECKING:
    from support.tls import Certificates

    from smtpd_fork import Server
    from smtpd_fork.gate import Ticket

KICKED = "4.3.2 mx.example.com Ended by the administrator, try again later"


def all_sessions(_: Ticket) -> bool:
    return True


def phases(server: Server) -> list[str]:
    return [entry.phase for entry in server.gate.ledger()]


async def no_session_is_left(server: Server) -> None:
    await until(lambda: server.gate.count == 0)
    assert server.audit() == []


async def gets_421(client: Client) -> None:
    reply = await client.reply()
    assert (reply.code, reply.text) == (421, KICKED)
    assert await client.ended()


async def test_an_idle_session_gets_421() -> None:
    async with serve(Discard()) as server, await Client.to(server.addresses[0]) as client:
        await client.greet()
        assert await server.kick(all_sessions) == 1
        await gets_421(client)
        await client.close()
        await no_session_is_left(server)


async def test_a_session_is_chosen_by_its_id_in_the_ledger() -> None:
    async with (
        serve(Discard()) as server,
        await Client.to(server.addresses[0]) as one,
        await Client.to(server.addresses[0]) as other,
    ):
        await one.greet("one.example")
        await other.greet("other.example")
        (entry,) = [each for each in server.gate.ledger() if each.helo == "one.example"]
        assert await server.kick(lambda ticket: ticket.id == entry.id) == 1
        await gets_421(one)
        assert (await other.deliver()).code == 250
        assert await server.kick(lambda ticket: ticket.id == "no-such-id") == 0


async def test_a_client_that_sends_a_message_gets_421_and_nothing_is_delivered() -> None:
    handler = Collect()
    async with serve(handler) as server, await Client.to(server.addresses[0]) as client:
        await client.greet()
        assert (await client.say(MAIL, RCPT, "DATA")).code == 354
        client.send("Subject: half\r\n\r\nhalf a li")
        await until(lambda: phases(server) == ["data"])
        assert await server.kick(all_sessions) == 1
        await gets_421(client)
        client.send("ne\r\n.\r\n")  # the client has not noticed: its data is read and discarded
        await client.close()
        await no_session_is_left(server)
    assert handler.messages == []


async def test_a_message_in_a_handler_is_delivered_and_answered_first() -> None:
    entered, leave = asyncio.Event(), asyncio.Event()

    class Slow(Collect):
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
            entered.set()
            await leave.wait()
            return await super().handle_DATA(server, session, envelope)

    handler = Slow()
    async with serve(handler) as server, await Client.to(server.addresses[0]) as client:
        await client.greet()
        await client.say(MAIL, RCPT, "DATA")
        client.send("Subject: hi\r\n\r\nhello\r\n.\r\nNOOP\r\n")
        await entered.wait()
        assert await server.kick(all_sessions) == 1
        assert phases(server) == ["handler"]
        leave.set()
        assert (await client.reply()).code == 250
        await gets_421(client)
        await no_session_is_left(server)
    assert len(handler.messages) == 1


async def test_a_client_that_waits_for_the_greeting_gets_421() -> None:
    async with (
        serve(Discard(), greet_pause=60) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await until(lambda: phases(server) == ["greet-pause"])
        (entry,) = server.gate.ledger()
        assert await server.kick(lambda ticket: ticket.id == entry.id) == 1
        await gets_421(client)
        await no_session_is_left(server)


async def test_a_proxy_that_has_not_sent_its_header_gets_421() -> None:
    options = {"listen": ["smtp+proxy:127.0.0.1:0"], "proxy_trust": ["127.0.0.1"]}
    async with (
        serve(Discard(), **options) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await until(lambda: phases(server) == ["proxy-header"])
        assert await server.kick(all_sessions) == 1
        await gets_421(client)
        await no_session_is_left(server)


async def test_a_client_keeps_the_id_that_it_had_before_its_session() -> None:
    notes = Notes()
    async with (
        serve(notes, listen=["smtp+proxy:127.0.0.1:0"], proxy_trust=["127.0.0.1"]) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await until(lambda: phases(server) == ["proxy-header"])
        (before,) = server.gate.ledger()
        client.send("PROXY TCP4 192.0.2.7 192.0.2.8 40312 25\r\n")
        await client.greet()
        (after,) = server.gate.ledger()
        assert (after.id, after.phase, after.key) == (before.id, "command", "192.0.2.7")
        assert [session.id for session in notes.sessions] == [before.id]


async def test_a_client_in_a_tls_handshake_is_closed(certificates: Certificates) -> None:
    options = {"listen": ["smtps:127.0.0.1:0"], "tls_context": certificates.server}
    async with (
        serve(Discard(), **options) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await until(lambda: phases(server) == ["handshake"])
        assert await server.kick(all_sessions) == 1
        assert (await client.reply()).code == 0
        await no_session_is_left(server)


async def test_a_client_in_the_handshake_of_starttls_is_closed(certificates: Certificates) -> None:
    async with (
        serve(Discard(), tls_context=certificates.server) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.greet()
        assert (await client.say("STARTTLS")).code == 220
        await until(lambda: phases(server) == ["handshake"])
        assert await server.kick(all_sessions) == 1
        assert (await client.reply()).code == 0
        await no_session_is_left(server)


async def test_an_idle_session_under_tls_gets_421(certificates: Certificates) -> None:
    options = {"listen": ["smtps:127.0.0.1:0"], "tls_context": certificates.server}
    async with (
        serve(Discard(), **options) as server,
        await Client.to(server.addresses[0], tls=certificates.client) as client,
    ):
        await client.greet()
        assert await server.kick(all_sessions) == 1
        await gets_421(client)
        await no_session_is_left(server)


async def test_a_client_that_has_not_answered_a_challenge_gets_421() -> None:
    options = {"auth_require_tls": False, "authenticator": lambda *_: None}
    async with (
        serve(Discard(), session_options=options) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.greet()
        assert (await client.say("AUTH LOGIN")).code == 334
        assert await server.kick(all_sessions) == 1
        await gets_421(client)
        await no_session_is_left(server)


@pytest.mark.parametrize("hook", ["MAIL", "CONNECT"])
async def test_the_end_of_a_running_hook_is_awaited(hook: str) -> None:
    entered, leave = asyncio.Event(), asyncio.Event()

    async def wait(*_: Any) -> str:
        entered.set()
        await leave.wait()
        return "250 2.0.0 Ok"

    handler = Discard()
    setattr(handler, f"handle_{hook}", wait)
    async with serve(handler) as server, await Client.to(server.addresses[0]) as client:
        if hook == "MAIL":
            await client.greet()
            client.send(MAIL + "\r\n")
        await entered.wait()
        assert await server.kick(all_sessions) == 1
        leave.set()
        assert (await client.reply()).code == (250 if hook == "MAIL" else 220)
        await gets_421(client)
        await no_session_is_left(server)


async def test_a_client_that_does_not_read_is_closed_as_well() -> None:
    async with serve(Discard(), session_timeout=600) as server:
        loop = asyncio.get_running_loop()
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            await loop.sock_connect(client, server.addresses[0])
            (ticket,) = await tickets(server)
            sending = asyncio.ensure_future(
                loop.sock_sendall(client, b"EHLO a.example\r\n" * 100_000)
            )
            await until(lambda: getattr(ticket.holder, "blocked", False))
            assert await server.kick(all_sessions) == 1
            await until(lambda: phases(server) == ["closing"])
            sending.cancel()
            await asyncio.wait([sending])
        await no_session_is_left(server)


async def tickets(server: Server) -> set[Ticket]:
    await until(lambda: server.sessions)
    return server.gate.tickets()


async def test_a_client_cannot_evade_a_kick_by_pipelined_commands() -> None:
    async with serve(Discard()) as server, await Client.to(server.addresses[0]) as client:
        await client.greet()
        client.send("NOOP\r\n" * 10_000)
        await until(lambda: server.gate.ledger()[0].phase == "command")
        assert await server.kick(all_sessions) == 1
        codes = {250}
        while codes == {250}:
            codes = {(await client.reply()).code}
        assert codes == {421}
        assert await client.ended()
        await no_session_is_left(server)


async def test_a_handler_may_kick_its_own_session() -> None:
    class Kicks(Discard):
        async def handle_MAIL(
            self, server: Any, session: Any, envelope: Any, address: str, options: list[str]
        ) -> str:
            server.kick(b"421 4.3.2 that is enough\r\n")
            envelope.mail_from = address
            return "250 2.1.0 Ok"

    async with serve(Kicks()) as server, await Client.to(server.addresses[0]) as client:
        await client.greet()
        assert (await client.say(MAIL)).code == 250
        assert (await client.reply()).code == 421
        assert await client.ended()
        await client.close()
        await no_session_is_left(server)


async def test_many_sessions_are_kicked_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smtpd_fork.server.running.KICKS_PER_ITERATION", 3)
    async with serve(Discard(), max_from_ip=0) as server:
        clients = [await Client.to(server.addresses[0]) for _ in range(20)]
        for client in clients:
            await client.greet()
        assert await server.kick(all_sessions) == 20
        for client in clients:
            await gets_421(client)
            await client.close()
        await no_session_is_left(server)


async def test_a_drain_waits_for_the_sessions_and_admits_no_clients() -> None:
    async with serve(Discard()) as server, await Client.to(server.addresses[0]) as client:
        await client.greet()
        draining = asyncio.ensure_future(server.drain())
        await asyncio.sleep(0)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*server.addresses[0])
        assert (await client.deliver()).code == 250  # the session is not ended: it may continue
        assert not draining.done()
        assert (await client.say("QUIT")).code == 221
        await draining
