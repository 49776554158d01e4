"""The dialogue: what clients are told, and that no way to end a session keeps its ticket."""

from __future__ import annotations

import asyncio
import logging
import socket
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from aiosmtpd.smtp import MISSING, AuthResult
from support.client import Client
from support.server import serve

from smtpd_fork.sinks import Discard

if TYPE_CHECKING:
    from support.tls import Certificates


class Collect:
    """Takes every message and keeps it; a stand-in for what users write."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.told: list[str] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.messages.append(envelope.content)
        return "250 2.0.0 Ok"


async def test_a_message_reaches_the_handler() -> None:
    handler = Collect()
    async with serve(handler) as server, await Client.to(server.addresses[0]) as client:
        await client.greet()
        reply = await client.deliver("Subject: x\r\n\r\n..dots\r\n")
        assert reply.code == 250
    assert handler.messages == [b"Subject: x\r\n\r\n.dots\r\n"]


async def test_the_greeting_names_the_host_and_no_version() -> None:
    async with serve(Discard()) as server, await Client.to(server.addresses[0]) as client:
        banner = await client.reply()
    assert banner == (220, ["mx.example.com ESMTP smtpd-fork"])


async def test_quit_ends_the_session_and_gives_the_place_back() -> None:
    async with serve(Discard()) as server, await Client.to(server.addresses[0]) as client:
        await client.greet()
        assert server.gate.count == 1
        assert await client.say("QUIT") == (221, ["2.0.0 Bye"])
        assert await client.ended()
        assert server.gate.count == 0


async def test_with_no_sink_a_message_is_not_accepted() -> None:
    async with serve(object()) as server, await Client.to(server.addresses[0]) as client:
        await client.greet()
        reply = await client.deliver()
        assert (reply.code, reply.text[:5]) == (451, "4.3.0")


async def test_a_handler_with_no_opinion_on_data_does_not_accept_it() -> None:
    class Undecided:
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> Any:
            return MISSING

    async with serve(Undecided()) as server, await Client.to(server.addresses[0]) as client:
        await client.greet()
        assert (await client.deliver()).code == 451


@pytest.mark.parametrize(
    "error",
    [
        ValueError("db password=secret"),
        ConnectionResetError("backend secret"),
        asyncio.CancelledError("secret"),
        asyncio.IncompleteReadError(b"secret", 10),
        asyncio.LimitOverrunError("secret", 1),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("hook", ["handle_MAIL", "handle_RCPT", "handle_DATA", "handle_EHLO"])
async def test_a_handler_that_raises_is_451_and_its_text_stays_in_the_log(
    hook: str, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(server: Any, session: Any, envelope: Any, *args: Any) -> str:
        raise error

    async def fail_ehlo(server: Any, session: Any, envelope: Any, name: str, lines: Any) -> Any:
        session.host_name = name
        raise error

    handler = Discard()
    setattr(handler, hook, fail_ehlo if hook == "handle_EHLO" else fail)
    async with serve(handler) as server, await Client.to(server.addresses[0]) as client:
        await client.reply()
        replies = [
            await client.say(command)
            for command in ("EHLO x", "MAIL FROM:<a@b.c>", "RCPT TO:<d@e.f>", "DATA")
        ]
        if replies[-1].code == 354:
            client.send("x\r\n.\r\n")
            replies.append(await client.reply())
        failed = [reply for reply in replies if reply.code == 451]
        assert failed
        assert all("secret" not in reply.text for reply in replies)
        assert await client.say("NOOP") == (250, ["2.0.0 OK"])
    records = [record for record in caplog.records if record.exc_info]
    assert records
    assert records[0].levelno == logging.ERROR
    assert records[0].getMessage().startswith("[")


async def test_after_a_failed_data_the_transaction_is_over() -> None:
    class Broken:
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
            raise RuntimeError

    async with serve(Broken()) as server, await Client.to(server.addresses[0]) as client:
        await client.greet()
        assert (await client.deliver()).code == 451
        assert (await client.say("RCPT TO:<d@e.f>")).code == 503


@pytest.mark.parametrize("answer", [None, "ok", 250, "", "999 no", b"250 ok"])
async def test_an_answer_that_is_no_reply_is_451(answer: object) -> None:
    class Wrong:
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> Any:
            return answer

    async with serve(Wrong()) as server, await Client.to(server.addresses[0]) as client:
        await client.greet()
        assert (await client.deliver()).code == 451


async def test_421_from_a_hook_closes_the_connection() -> None:
    class Tired:
        async def handle_RCPT(self, *_: Any) -> str:
            return "421 4.7.0 Enough"

    async with serve(Tired()) as server, await Client.to(server.addresses[0]) as client:
        await client.greet()
        await client.say("MAIL FROM:<a@b.c>")
        assert await client.say("RCPT TO:<d@e.f>") == (421, ["4.7.0 Enough"])
        assert await client.ended()


@pytest.mark.parametrize("command", ["MAIL FROM:<", 'MAIL FROM:"', "MAIL FROM:<a@", "VRFY <"])
async def test_what_is_no_address_is_a_clients_error(
    command: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve(Discard()) as server, await Client.to(server.addresses[0]) as client:
        await client.greet()
        assert 500 <= (await client.say(command)).code < 600
    assert not [record for record in caplog.records if record.exc_info]


async def test_auth_is_not_offered_when_nobody_can_check_credentials(
    certificates: Certificates,
) -> None:
    async with (
        serve(Discard(), tls_context=certificates.server) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.greet()
        await client.start_tls(certificates.client)
        offered = (await client.say("EHLO x")).lines
        assert not [line for line in offered if line.startswith("AUTH")]
        assert (await client.say("AUTH PLAIN AGEAYg==")).code == 504


async def test_auth_works_with_an_authenticator(certificates: Certificates) -> None:
    def check(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
        return AuthResult(success=data.password == b"b")

    options = {"authenticator": check, "auth_required": True}
    async with (
        serve(Discard(), tls_context=certificates.server, session_options=options) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.greet()
        await client.start_tls(certificates.client)
        assert "AUTH LOGIN PLAIN" in (await client.say("EHLO x")).lines
        assert (await client.say("MAIL FROM:<a@b.c>")).code == 530
        assert (await client.say("AUTH PLAIN AGEAYg==")).code == 235
        assert (await client.deliver()).code == 250


# -- the end of input ------------------------------------------------------------------------


async def test_a_client_that_half_closes_after_its_final_dot_is_still_served() -> None:
    class Slow(Collect):
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
            while not server._eof:
                await asyncio.sleep(0.001)
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
    async with serve(handler) as server, await Client.to(server.addresses[0]) as client:
        await client.greet()
        await client.say("MAIL FROM:<a@b.c>", "RCPT TO:<d@e.f>", "DATA")
        client.send("hello\r\n")
        client.writer.write_eof()
        assert await client.ended()
    assert handler.messages == []


async def test_a_reset_while_a_message_is_in_hand_does_not_cancel_the_handler() -> None:
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
        while server.gate.count:
            await asyncio.sleep(0)
        go_on.set()
    assert handler.messages == [b"hello\r\n"]


async def test_pipelined_commands_do_not_keep_the_loop_from_others() -> None:
    """Stock aiosmtpd answers all that is buffered in one go."""
    async with serve(Discard()) as server:
        flood = await Client.to(server.addresses[0])
        await flood.greet()
        flood.send(b"MAIL FROM:<a@example.com>\r\n" * 20_000)
        async with await Client.to(server.addresses[0]) as client:
            await client.greet()
            assert (await client.say("NOOP")).code == 250
        flood.reset()


# -- time --------------------------------------------------------------------------------------


async def test_a_silent_client_is_told_421_and_loses_its_place() -> None:
    async with (
        serve(Discard(), timeout=0.1) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.greet()
        reply = await client.reply()
        assert (reply.code, reply.text[:5]) == (421, "4.4.2")
        assert await client.ended()


async def test_a_client_that_takes_no_replies_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smtpd_fork.smtp.engine.LINGER_SECONDS", 0.05)
    async with serve(Discard(), timeout=0.1) as server:
        client = await Client.to(server.addresses[0])
        transport: Any = client.writer.transport
        transport.pause_reading()
        client.send(b"NOOP " + b"x" * 400 + b"\r\n")
        client.send(b"HELP\r\n" * 200_000)
        while not server.gate.count:
            await asyncio.sleep(0.001)
        async with asyncio.timeout(10):
            while server.gate.count:
                await asyncio.sleep(0.005)
        client.reset()


async def test_a_handler_that_takes_all_the_time_there_is_gets_cancelled() -> None:
    cancelled = asyncio.Event()

    class Stuck:
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()
            return "250 never"

    async with (
        serve(Stuck(), handler_timeout=0.1, timeout=5) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.greet()
        assert (await client.deliver()).code == 451
        await cancelled.wait()
        assert (await client.say("NOOP")).code == 250


# -- TLS ---------------------------------------------------------------------------------------


async def test_mail_goes_over_starttls(certificates: Certificates) -> None:
    seen: list[Any] = []

    class Look(Collect):
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
            seen.append((session.ssl["cipher"], session.peer[0], session.host_name))
            return "250 ok"

    async with (
        serve(Look(), tls_context=certificates.server) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        assert "STARTTLS" in (await client.greet()).lines
        await client.start_tls(certificates.client)
        assert (await client.say("MAIL FROM:<a@b.c>")).code == 503  # EHLO again, as RFC 3207 wants
        assert "STARTTLS" not in (await client.say("EHLO again")).lines
        assert (await client.deliver()).code == 250
        assert await client.say("QUIT") == (221, ["2.0.0 Bye"])
    ((cipher, host, name),) = seen
    assert cipher[1].startswith("TLS")
    assert (host, name) == ("127.0.0.1", "again")


async def test_a_second_starttls_is_503(certificates: Certificates) -> None:
    async with (
        serve(Discard(), tls_context=certificates.server) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.greet()
        await client.start_tls(certificates.client)
        await client.say("EHLO x")
        assert (await client.say("STARTTLS")).code == 503


async def test_what_is_sent_behind_starttls_in_the_clear_is_forgotten(
    certificates: Certificates,
) -> None:
    """More than 2 KB of it leaves stock aiosmtpd's reader paused, and the handshake hangs."""
    async with (
        serve(Discard(), tls_context=certificates.server) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.greet()
        client.send(b"STARTTLS\r\n" + b"NOOP injected\r\n" * 300)
        assert (await client.reply()).code == 220
        async with asyncio.timeout(10):
            await client.writer.start_tls(certificates.client, server_hostname="localhost")
        assert (await client.say("EHLO x")).lines[0] == "mx.example.com"


async def test_required_starttls_refuses_mail_in_the_clear(certificates: Certificates) -> None:
    async with (
        serve(Discard(), tls_context=certificates.server, require_starttls=True) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.greet()
        assert (await client.say("MAIL FROM:<a@b.c>")).code == 530


@pytest.mark.parametrize("how", ["stall", "garbage", "reset", "eof", "close after 220"])
async def test_a_starttls_handshake_that_fails_gives_the_place_back(
    how: str, certificates: Certificates
) -> None:
    """Stock aiosmtpd never hears of the end of a handshake that stalls."""
    options = {"tls_context": certificates.server, "tls_handshake_timeout": 0.2, "timeout": 0.2}
    async with serve(Discard(), **options) as server:
        client = await Client.to(server.addresses[0])
        await client.greet()
        client.send("STARTTLS\r\n")
        await client.reply()
        if how == "garbage":
            client.send(b"this is no ClientHello\r\n" * 10)
        elif how == "reset":
            client.reset()
        elif how == "eof":
            client.writer.write_eof()
        elif how == "close after 220":
            await client.close()
        async with asyncio.timeout(10):
            while server.gate.count:
                await asyncio.sleep(0.005)
        await client.close()


async def test_mail_goes_over_implicit_tls(certificates: Certificates) -> None:
    options = {"listen": ["smtps:127.0.0.1:0"], "tls_context": certificates.server}
    async with (
        serve(Discard(), **options) as server,
        await Client.to(server.addresses[0], tls=certificates.client) as client,
    ):
        offered = await client.greet()
        assert "STARTTLS" not in offered.lines
        assert (await client.deliver()).code == 250


async def test_an_idle_socket_on_the_tls_port_is_counted_and_cut(
    certificates: Certificates,
) -> None:
    options = {
        "listen": ["smtps:127.0.0.1:0"],
        "tls_context": certificates.server,
        "tls_handshake_timeout": 0.3,
    }
    async with serve(Discard(), **options) as server:
        client = await Client.to(server.addresses[0])
        while not server.gate.count:
            await asyncio.sleep(0.001)
        assert server.sessions == 1
        assert await client.ended()
        async with asyncio.timeout(10):
            while server.gate.count:
                await asyncio.sleep(0.005)
        await client.close()


# -- CONNECT and DISCONNECT --------------------------------------------------------------------


class Diary(Discard):
    def __init__(self, answer: Any = MISSING) -> None:
        self.answer = answer
        self.told: list[str] = []

    async def handle_CONNECT(self, server: Any, session: Any) -> Any:
        self.told.append(f"connect {session.peer[0]}")
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def handle_DISCONNECT(self, server: Any, session: Any) -> None:
        self.told.append(f"disconnect {session.peer[0]}")


async def test_connect_and_disconnect_are_told_once_each() -> None:
    diary = Diary()
    async with serve(diary) as server, await Client.to(server.addresses[0]) as client:
        await client.greet()
        client.reset()
    assert diary.told == ["connect 127.0.0.1", "disconnect 127.0.0.1"]


async def test_connect_can_refuse_in_place_of_the_banner() -> None:
    diary = Diary("554 5.7.1 Not you")
    async with serve(diary) as server, await Client.to(server.addresses[0]) as client:
        assert await client.reply() == (554, ["5.7.1 Not you"])
        assert await client.ended()
    assert diary.told == ["connect 127.0.0.1", "disconnect 127.0.0.1"]


async def test_connect_that_raises_is_421() -> None:
    diary = Diary(RuntimeError("secret"))
    async with serve(diary) as server, await Client.to(server.addresses[0]) as client:
        reply = await client.reply()
        assert (reply.code, "secret" in reply.text) == (421, False)
        assert await client.ended()


async def test_one_session_id_is_in_the_reply_and_on_the_session_before_and_after_starttls(
    certificates: Certificates,
) -> None:
    ids: list[str] = []

    class Look(Discard):
        async def handle_CONNECT(self, server: Any, session: Any) -> Any:
            ids.append(session.id)
            return MISSING

        async def handle_MAIL(self, server: Any, session: Any, *_: Any) -> Any:
            ids.append(session.id)
            return MISSING

    async with (
        serve(Look(), tls_context=certificates.server) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.greet()
        await client.start_tls(certificates.client)
        await client.say("EHLO x")
        await client.deliver()
    assert len(ids) == 2
    assert ids[0] == ids[1]


async def test_nobody_is_no_recipient() -> None:
    async with serve(Discard()) as server, await Client.to(server.addresses[0]) as client:
        await client.greet()
        await client.say("MAIL FROM:<>")
        assert (await client.say("RCPT TO:<>")).code == 501
        assert (await client.say("DATA")).code == 503


async def test_help_knows_every_command() -> None:
    async with serve(Discard()) as server, await Client.to(server.addresses[0]) as client:
        await client.greet()
        (known,) = (await client.say("HELP")).lines
        assert {"DATA", "EHLO", "MAIL", "QUIT", "RCPT"} <= set(known.split())


async def test_proxy_data_outlives_starttls_and_what_comes_behind_the_header_is_read(
    certificates: Certificates,
) -> None:
    seen: list[Any] = []

    class Behind(Discard):
        async def handle_PROXY(self, server: Any, session: Any, envelope: Any, data: Any) -> bool:
            return True

        async def handle_MAIL(self, server: Any, session: Any, *_: Any) -> Any:
            seen.append(str(session.proxy_data.src_addr))
            return MISSING

    options = {"proxy_protocol_timeout": 5}
    async with (
        serve(Behind(), tls_context=certificates.server, session_options=options) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        client.send("PROXY TCP4 192.0.2.7 192.0.2.8 4025 25\r\nEHLO x\r\n")
        assert (await client.reply()).code == 220
        assert (await client.reply()).code == 250
        await client.start_tls(certificates.client)
        await client.say("EHLO x")
        assert (await client.deliver()).code == 250
    assert seen == ["192.0.2.7"]


async def test_what_comes_behind_a_proxy_header_is_bounded_while_the_handler_thinks() -> None:
    asked, answer = asyncio.Event(), asyncio.Event()
    sessions: list[Any] = []

    class Slow(Discard):
        async def handle_PROXY(self, server: Any, session: Any, envelope: Any, data: Any) -> bool:
            sessions.append(server)
            asked.set()
            await answer.wait()
            return True

    options = {"proxy_protocol_timeout": 5}
    async with serve(Slow(), session_options=options) as server:
        async with await Client.to(server.addresses[0]) as client:
            client.send("PROXY TCP4 192.0.2.7 192.0.2.8 4025 25\r\n")
            await asked.wait()
            client.send("NOOP\r\n" * 500_000)
            for _ in range(200):
                await asyncio.sleep(0.001)
            assert len(sessions[0]._proxy_reader._buffer) < 1_000_000
            answer.set()
            assert (await client.reply()).code == 220
            assert (await client.reply()).code == 250


@pytest.mark.parametrize("header", ["", "GET / HTTP/1.1\r\n", "PROXY TCP4 nonsense\r\n"])
async def test_without_its_proxy_header_a_session_is_closed_in_time(header: str) -> None:
    class Behind(Discard):
        async def handle_PROXY(self, *_: Any) -> bool:
            return True

    options = {"proxy_protocol_timeout": 0.2}
    async with serve(Behind(), timeout=2, session_options=options) as server:
        async with await Client.to(server.addresses[0]) as client:
            client.send(header)
            assert await client.ended()


async def test_who_is_interrupted_can_say_all_and_then_hears_the_reply() -> None:
    """Closing while a client speaks would be a reset: it could not even write to its end."""

    def talk(address: tuple[str, int]) -> bytes:
        with socket.create_connection(address, timeout=20) as sock:
            sock.sendall(b"nonsense\r\n" * 300_000)
            return b"".join(iter(partial(sock.recv, 65536), b""))

    async with serve(Discard(), max_errors=3) as server:
        said = await asyncio.to_thread(talk, server.addresses[0])
        assert [line[:3] for line in said.splitlines()] == [b"220", *[b"500"] * 3, b"421"]


async def test_who_is_interrupted_and_goes_on_for_ever_is_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("smtpd_fork.smtp.engine.HEAR_OUT_SECONDS", 0.05)
    async with serve(Discard(), max_errors=3, timeout=0.5) as server:
        client = await Client.to(server.addresses[0])
        with pytest.raises(ConnectionError):
            while True:
                client.send(b"nonsense\r\n" * 1000)
                await client.writer.drain()
        await client.close()
