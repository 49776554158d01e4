"""The dialogue: the replies to clients, whatever a handler answers or raises."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import pytest
from aiosmtpd.smtp import MISSING, AuthResult
from support.client import Client
from support.handlers import Collect
from support.server import serve

from smtpd_fork.sinks import Discard

if TYPE_CHECKING:
    from support.tls import Certificates


async def test_the_handler_gets_the_message() -> None:
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


async def test_quit_ends_the_session_and_releases_the_slot() -> None:
    async with serve(Discard()) as server, await Client.to(server.addresses[0]) as client:
        await client.greet()
        assert server.gate.count == 1
        assert await client.say("QUIT") == (221, ["2.0.0 Bye"])
        assert await client.ended()
        assert server.gate.count == 0


async def test_without_a_sink_a_message_is_not_accepted() -> None:
    class Undecided:
        async def handle_VRFY(self, *_: Any) -> Any:
            return MISSING

    async with serve(Undecided()) as server, await Client.to(server.addresses[0]) as client:
        await client.greet()
        reply = await client.deliver()
        assert (reply.code, reply.text[:5]) == (451, "4.3.0")


async def test_a_handler_that_returns_missing_for_data_does_not_accept_it() -> None:
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


async def test_a_failed_data_ends_the_transaction() -> None:
    class Broken:
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
            raise RuntimeError

    async with serve(Broken()) as server, await Client.to(server.addresses[0]) as client:
        await client.greet()
        assert (await client.deliver()).code == 451
        assert (await client.say("RCPT TO:<d@e.f>")).code == 503


@pytest.mark.parametrize("answer", [None, "ok", 250, "", "999 no", "354 go on"])
async def test_an_answer_that_is_not_a_reply_is_451(answer: object) -> None:
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
async def test_an_invalid_address_is_an_error_of_the_client(
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
        assert "AUTH PLAIN LOGIN" in (await client.say("EHLO x")).lines
        assert (await client.say("MAIL FROM:<a@b.c>")).code == 530
        assert (await client.say("AUTH PLAIN AGEAYg==")).code == 235
        assert (await client.deliver()).code == 250


async def test_an_empty_recipient_is_rejected() -> None:
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
