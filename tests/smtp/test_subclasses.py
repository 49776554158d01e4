"""Users' subclasses of SMTP, which add and override commands."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from aiosmtpd.smtp import syntax
from support.client import MAIL, RCPT, Client, replies
from support.handlers import Collect, KeepSlowly, check_password
from support.server import greeted, serve, until

from smtpd_fork.smtp import SMTP

if TYPE_CHECKING:
    from support.tls import Certificates


class Custom(SMTP):
    """A subclass as users write it."""

    @syntax("XFOO [anything]")
    async def smtp_XFOO(self, arg: str | None) -> None:
        await asyncio.sleep(0)
        await self.push(f"250 2.0.0 foo {arg}")

    async def smtp_XBAD(self, arg: str | None) -> None:
        raise ValueError("secret")

    async def smtp_MAIL(self, arg: str | None) -> None:
        if arg and "evil" in arg:
            await self.push("550 5.7.1 Not you")
            return
        await super().smtp_MAIL(arg)


async def test_a_users_subclass_adds_and_overrides_commands(
    caplog: pytest.LogCaptureFixture,
) -> None:
    handler = Collect()
    async with greeted(handler, session_class=Custom) as client:
        assert await client.say("xfoo bar") == (250, ["2.0.0 foo bar"])
        assert "XFOO" in (await client.say("HELP")).text
        assert (await client.say("HELP XFOO")).text.endswith("Syntax: XFOO [anything]")
        assert await client.say("MAIL FROM:<evil@x.y>") == (550, ["5.7.1 Not you"])
        assert (await client.say("RCPT TO:<b@x.y>")).code == 503
        assert (await client.say("MAIL FROM:<")).code == 553
        assert (await client.deliver()).code == 250
        client.send(f"{MAIL}\r\nXFOO 1\r\n{RCPT}\r\nDATA\r\nx\r\n.\r\nXFOO 2\r\n")
        assert await replies(client, 6) == [250, 250, 250, 354, 250, 250]
        reply = await client.say("XBAD")
        assert (reply.code, "secret" in reply.text) == (451, False)
        assert (await client.say("NOOP")).code == 250
    assert len(handler.messages) == 2
    assert [record.levelno for record in caplog.records if record.exc_info] == [logging.ERROR]


async def test_a_users_mail_with_super_and_a_handlers_hook_answers_once() -> None:
    class Hook(Collect):
        async def handle_MAIL(
            self, server: Any, session: Any, envelope: Any, address: str, options: list[str]
        ) -> str:
            await asyncio.sleep(0)
            envelope.mail_from = address
            return "250 2.1.0 from the hook"

    async with greeted(Hook(), session_class=Custom) as client:
        assert await client.say(MAIL) == (250, ["2.1.0 from the hook"])
        assert await client.say("NOOP") == (250, ["2.0.0 OK"])


class Data(SMTP):
    """Reads the result of a message, as a subclass of aiosmtpd's class does."""

    events: ClassVar[list[str]] = []

    async def smtp_DATA(self, arg: str | None) -> None:
        assert self.envelope is not None
        self.events.append(f"before {self.envelope.rcpt_tos}")
        await super().smtp_DATA(arg)
        self.events.append(f"after {self.messages}")


@pytest.fixture
def data() -> type[Data]:
    class Fresh(Data):
        events: ClassVar[list[str]] = []

    return Fresh


class Slow(Collect):
    """Accepts messages after an iteration of the loop."""

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        await asyncio.sleep(0)
        return await super().handle_DATA(server, session, envelope)


@pytest.mark.parametrize("handler", [Collect, Slow])
async def test_smtp_data_of_super_returns_after_the_reply_to_the_message(
    handler: type[Collect], data: type[Data]
) -> None:
    taken = handler()
    async with greeted(taken, session_class=data) as client:
        assert (await client.deliver()).code == 250
        assert data.events == ["before ['b@example.com']", "after 1"]
        await client.say(MAIL, RCPT, "DATA")
        for octet in "a\r\n..b\r\n.\r\n":  # each in a separate packet
            client.send(octet)
            await asyncio.sleep(0)
        assert (await client.reply()).code == 250
        client.send(f"{MAIL}\r\n{RCPT}\r\nDATA\r\nc\r\n.\r\nNOOP\r\n{MAIL}\r\n{RCPT}\r\nDATA\r\n")
        assert await replies(client, 8) == [250, 250, 354, 250, 250, 250, 250, 354]
        client.send("d\r\n.\r\nQUIT\r\n")
        assert await replies(client, 2) == [250, 221]
    assert taken.messages[1:] == [b"a\r\n.b\r\n", b"c\r\n", b"d\r\n"]
    assert len(data.events) == 8


async def test_smtp_data_of_super_returns_at_once_if_data_is_rejected(data: type[Data]) -> None:
    async with greeted(Collect(), session_class=data, max_message_size=100) as client:
        assert (await client.say("DATA")).code == 503
        assert (await client.deliver("x" * 200 + "\r\n")).code == 552
        assert (await client.say("NOOP")).code == 250
    assert data.events[-1] == "after 0"


@pytest.mark.parametrize("ending", ["reset", "eof", "stop", "kick", "timeout", "slow stop"])
async def test_an_incomplete_message_leaves_no_objects(ending: str, data: type[Data]) -> None:
    options: dict[str, Any] = {"data_timeout": 0.2} if ending == "timeout" else {}
    handler = Collect()
    async with serve(handler, session_class=data, **options) as server:
        async with await Client.to(server.addresses[0]) as client:
            await client.greet()
            await client.say(MAIL, RCPT, "DATA")
            client.send("half a mess")
            if ending == "reset":
                client.reset()
            elif ending == "eof":
                client.writer.write_eof()
                assert await client.reader.read() == b""
            elif ending == "timeout":
                assert (await client.reply()).code == 421
            elif ending == "kick":
                assert await server.kick(lambda _: True) == 1
                assert (await client.reply()).code == 421
            elif ending == "stop":
                assert await server.stop(0) == 1
            else:
                stopping = asyncio.create_task(server.stop())
                await asyncio.sleep(0.02)
                client.send("age\r\n.\r\n")
                assert await replies(client, 2) == [250, 421]
                assert await stopping == 0
            await until(lambda: server.gate.count == 0)
    assert len(handler.messages) == (ending == "slow stop")
    assert len(data.events) == 1 + (ending == "slow stop")


async def test_a_subclass_that_fails_after_its_reply_sends_no_second_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Fails(SMTP):
        async def smtp_DATA(self, arg: str | None) -> None:
            await super().smtp_DATA(arg)
            raise ValueError("after the message")

        async def smtp_XFOO(self, arg: str | None) -> None:
            await self.push("250 ok")
            raise ValueError("after the reply")

        async def smtp_XHELO(self, arg: str | None) -> None:
            if await self.check_auth_needed("XHELO") or await self.check_helo_needed():
                raise ValueError("after the reply as well")

        async def smtp_XHALF(self, arg: str | None) -> None:
            await self.push("451-half")
            raise ValueError("in the middle of it")

    async with serve(Collect(), session_class=Fails) as server:
        async with await Client.to(server.addresses[0]) as client:
            await client.reply()
            client.send("XHELO\r\nEHLO x\r\n")
            assert await replies(client, 2) == [503, 250]
            assert (await client.deliver()).code == 250
            client.send("XFOO\r\nXHALF\r\nNOOP\r\n")
            assert await replies(client, 3) == [250, 451, 250]
    assert [record.levelno for record in caplog.records if record.exc_info] == [logging.ERROR] * 4


async def test_bdat_does_not_bypass_smtp_data_of_a_subclass(data: type[Data]) -> None:
    handler = Collect()
    async with serve(handler, session_class=data) as server:
        async with await Client.to(server.addresses[0]) as client:
            offer = (await client.greet()).text
            assert "CHUNKING" not in offer
            assert "BINARYMIME" not in offer
            assert "BDAT" not in (await client.say("HELP")).text
            assert (await client.say("MAIL FROM:<a@b.c> BODY=BINARYMIME")).code == 501
            await client.say(MAIL, RCPT)
            client.send("BDAT 6\r\nNOOP\r\nBDAT 6 LAST\r\nNOOP\r\nNOOP\r\n")  # with their chunks
            assert await replies(client, 3) == [503, 503, 250]
    assert handler.messages == []


async def test_chunking_is_offered_if_a_subclass_has_smtp_bdat() -> None:
    class Both(Data):
        async def smtp_BDAT(self, arg: str | None) -> None:
            await super().smtp_BDAT(arg)

    handler = Collect()
    async with serve(handler, session_class=Both) as server:
        async with await Client.to(server.addresses[0]) as client:
            assert "CHUNKING" in (await client.greet()).text
            await client.say(MAIL, RCPT)
            client.send("BDAT 3\r\nabcBDAT 0 LAST\r\n")
            assert await replies(client, 2) == [250, 250]
    assert len(handler.messages) == 1


@pytest.mark.parametrize(
    ("limit", "codes"),
    [
        ({"DATA": 1, "*": 9}, [250, 421]),
        ({"DATA": 1, "BDAT": 9}, [250, 250]),
        ({"BDAT": 2, "*": 9}, [250, 421]),
    ],
)
async def test_a_call_limit_of_data_applies_to_bdat(limit: Any, codes: list[int]) -> None:
    options = {"command_call_limit": limit}
    async with greeted(Collect(), session_options=options) as client:
        for code in codes:
            await client.say(MAIL, RCPT)
            client.send("BDAT 3\r\nabc" + "BDAT 3 LAST\r\ndef")
            found = (await client.reply()).code
            if found == 250:
                found = (await client.reply()).code
            assert found == code


async def test_connection_made_and_lost_are_called_as_in_aiosmtpd(
    certificates: Certificates,
) -> None:
    events: list[str] = []

    class Watches(SMTP):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            tls = transport.get_extra_info("sslcontext") is not None
            events.append("made under TLS" if tls else "made")
            super().connection_made(transport)
            assert self.session is not None

        def connection_lost(self, error: Exception | None) -> None:
            events.append("lost")
            super().connection_lost(error)

        def data_received(self, data: bytes) -> None:
            events.append("data")
            super().data_received(data)

        def eof_received(self) -> bool | None:
            events.append("eof")
            return super().eof_received()

    options: dict[str, Any] = {"tls_context": certificates.server, "session_class": Watches}
    async with serve(Collect(), **options) as server:
        async with await Client.to(server.addresses[0]) as client:
            await client.greet()
            client.writer.write_eof()
            await client.ended()
        await until(lambda: "lost" in events)
        assert events == ["made", "data", "eof", "lost"]
        events.clear()
        async with await Client.to(server.addresses[0]) as client:
            await client.greet()
            await client.start_tls(certificates.client)
            assert (await client.say("EHLO x")).code == 250
        await until(lambda: "lost" in events)
        assert events[:3] == ["made", "data", "data"]
        assert events[-1] == "lost"
        assert [events.count(name) for name in ("made", "made under TLS", "lost")] == [1, 1, 1]


async def test_a_connection_made_that_raises_holds_no_slot() -> None:
    class Fails(SMTP):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            raise ValueError("a subclass's")

    asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # it is logged, by design
    async with serve(Collect(), session_class=Fails) as server:
        async with await Client.to(server.addresses[0]) as client:
            assert await client.ended()
        await until(lambda: server.gate.count == 0)


async def test_a_class_that_calls_the_handler_itself_sees_the_hooks_that_wait() -> None:
    seen: list[str] = []

    class Asks(SMTP):
        async def _call_handler_hook(self, command: str, *args: Any) -> Any:
            seen.append(command)
            return await super()._call_handler_hook(command, *args)

    options = {"authenticator": check_password, "auth_require_tls": False}
    async with greeted(KeepSlowly(), session_class=Asks, session_options=options) as client:
        assert (await client.say("AUTH PLAIN AHVzZXIAcGFzcw==")).code == 235
        assert (await client.deliver()).code == 250
    assert seen == ["AUTH", "RCPT", "DATA"]
