"""The filter milter with stages: the milter gets the events of a session as they occur."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from support.client import Client, code_and_enhanced
from support.handlers import Collect
from support.milter import TestMilter, frame
from support.milter_door import AS_SENT, STORED, door, send
from support.scripted_server import listening
from support.server import serve, until

from smtpd_fork.filters import Milter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from support.tls import Certificates


ALL = ["connect", "helo", "mail", "rcpt"]


@asynccontextmanager
async def live(milter: TestMilter, *more: Any, **keys: Any) -> AsyncIterator[tuple[Any, Collect]]:
    """Serve with a milter; yield the address, and the handler that keeps messages."""
    kept = Collect()
    keys = {"stages": ALL, **keys}
    async with (
        listening(milter),
        serve([Milter(milter.address, **keys), *more, kept]) as server,
    ):
        yield server.addresses[0], kept


async def test_a_milter_gets_each_event_when_it_occurs() -> None:
    milter = TestMilter(protocol=0x100000)
    async with live(milter) as (address, kept):
        async with await Client.to(address) as client:
            assert (await client.reply()).code == 220
            assert milter.commands == b"C"
            await client.say("EHLO me.example")
            assert milter.commands == b"CH"
            await client.say("MAIL FROM:<a@example.org>")
            assert milter.commands == b"CHM"
            await client.say("RCPT TO:<b@example.com>")
            assert milter.commands == b"CHMR"
            assert await send_rest(client) == (250, "2.0.0")
            await client.say("QUIT")
        await until(lambda: not milter.open)
    assert milter.commands == b"CHMRTLLLNBEQ"
    assert milter.data(b"H") == [b"me.example\0"]
    assert milter.connections == 1
    assert kept.messages == [STORED]


async def send_rest(client: Client) -> tuple[int, str]:
    assert (await client.say("DATA")).code == 354
    client.send(f"{AS_SENT}.\r\n")
    return code_and_enhanced(await client.reply())


@pytest.mark.parametrize(
    ("answer", "greeting"),
    [
        (frame(b"r"), "554 5.7.1 Command rejected"),
        (frame(b"t"), "421 4.7.1 Service unavailable, try again later"),
        (frame(b"y", b"550 5.7.1 Go away\0"), "554 5.7.1 Go away"),
        (frame(b"y", b"450 4.7.1 Slowly\0"), "421 4.7.1 Slowly"),
    ],
)
async def test_a_refused_client_gets_no_greeting(answer: bytes, greeting: str) -> None:
    milter = TestMilter(answers={b"C": answer})
    async with live(milter) as (address, _), await Client.to(address) as client:
        reply = await client.reply()
        assert f"{reply.code} {reply.text}" == greeting
        assert await client.reader.read() == b""
        await until(lambda: not milter.open)


@pytest.mark.parametrize(("when", "code"), [("defer", 421), ("refuse", 554), ("accept", 220)])
async def test_when_down_applies_at_connect(when: Any, code: int, tmp_path: Path) -> None:
    judge = Milter(f"unix:{tmp_path}/none", stages=ALL, when_down=when)  # type: ignore[arg-type]
    kept = Collect()
    async with serve([judge, kept]) as server, await Client.to(server.addresses[0]) as client:
        assert (await client.reply()).code == code
        if when == "accept":
            await client.say("EHLO me.example")
            assert await send(client) == (250, "2.0.0")
    assert len(kept.messages) == (when == "accept")


@pytest.mark.parametrize("command", ["EHLO", "HELO"])
async def test_a_refused_ehlo_does_not_count_as_a_greeting(command: str) -> None:
    milter = TestMilter(answers={b"H": frame(b"y", b"550 5.7.1 No such name\0")})
    async with live(milter) as (address, _), await Client.to(address) as client:
        await client.reply()
        assert code_and_enhanced(await client.say(f"{command} spam.example")) == (550, "5.7.1")
        assert (await client.say("MAIL FROM:<a@example.org>")).code == 503
        milter.answers = {}
        for name in ("spam.example", "me.example"):  # it is the client that is refused
            again = await client.say(f"{command} {name}")
            assert code_and_enhanced(again) == (550, "5.7.1")
        assert milter.commands.removesuffix(b"Q") == b"CH"


async def test_a_refusal_of_ehlo_is_kept_by_other_handlers() -> None:
    class Changes:
        async def handle_EHLO(self, _: Any, session: Any, __: Any, name: str, lines: Any) -> Any:
            session.host_name = name
            return [*lines[:-1], "250-X-FOO", lines[-1]]

    milter = TestMilter(answers={b"H": frame(b"r")})
    async with live(milter, Changes()) as (address, _), await Client.to(address) as client:
        await client.reply()
        assert (await client.say("EHLO me")).code == 550
        assert (await client.say("MAIL FROM:<a@example.org>")).code == 503


@pytest.mark.parametrize("at", [b"C", b"H"])
@pytest.mark.parametrize("stages", [["data"], ["rcpt"]])
async def test_a_client_that_is_refused_is_refused_with_each_of_its_messages(
    at: bytes, stages: list[str]
) -> None:
    milter = TestMilter(answers={at: frame(b"r")})
    async with live(milter, stages=stages) as (address, kept), await Client.to(address) as client:
        await client.greet()
        for _ in range(3):
            await client.say("RSET", "EHLO another.example", "MAIL FROM:<a@example.org>")
            reply = await client.say("RCPT TO:<b@example.com>")
            if stages == ["data"]:
                assert await send_rest(client) == (550, "5.7.1")
            else:
                assert code_and_enhanced(reply) == (550, "5.7.1")
        await until(lambda: not milter.open)
    assert kept.messages == []


@pytest.mark.parametrize("at", [b"C", b"H"])
async def test_an_accepted_client_is_not_checked_again(at: bytes) -> None:
    milter = TestMilter(answers={at: frame(b"a")})
    async with live(milter) as (address, kept), await Client.to(address) as client:
        await client.greet()
        assert await send(client) == (250, "2.0.0")
        assert await send(client) == (250, "2.0.0")
        await until(lambda: not milter.open)
    assert milter.commands.rstrip(b"Q") in {b"C", b"CH"}
    assert milter.connections == 1
    assert kept.messages == [STORED] * 2


async def test_with_stages_a_milter_refuses_senders_and_recipients_immediately() -> None:
    milter = TestMilter(answers={b"R": frame(b"y", b"550 5.1.1 No such user\0")})
    async with door(milter, stages=["mail", "rcpt"]) as (client, kept):
        assert milter.connections == 0
        assert (await client.say("MAIL FROM:<a@example.org>")).code == 250
        assert milter.commands == b"CHM"
        refused = await client.say("RCPT TO:<x@example.com>")
        assert code_and_enhanced(refused) == (550, "5.1.1")
        milter.answers = {b"R": frame(b"t")}
        assert code_and_enhanced(await client.say("RCPT TO:<y@example.com>")) == (451, "4.7.1")
        milter.answers = {}
        assert (await client.say("RCPT TO:<b@example.com>", "DATA")).code == 354
        client.send(f"{AS_SENT}.\r\n")
        assert (await client.reply()).code == 250
        assert milter.commands == b"CHMRRRTLLLNBE"
        milter.answers = {b"M": frame(b"r")}
        assert code_and_enhanced(await client.say("MAIL FROM:<z@example.org>")) == (550, "5.7.1")
        milter.answers = {}
        assert await send(client) == (250, "2.0.0")
        assert milter.commands == b"CHMRRRTLLLNBEMAMRTLLLNBE"
        await client.say("QUIT")
        await until(lambda: not milter.open)
    assert milter.connections == 1
    assert kept.messages == [STORED] * 2
    assert kept.envelopes[0].rcpt_tos == ["b@example.com"]


async def test_without_the_stage_rcpt_a_refused_recipient_refuses_the_message() -> None:
    milter = TestMilter(answers={b"R": frame(b"r")})
    async with door(milter, stages=["mail"]) as (client, kept):
        assert await send(client) == (550, "5.7.1")
    assert kept.messages == []


@pytest.mark.parametrize("command", ["RSET", "EHLO me"])
async def test_an_unfinished_transaction_is_aborted(command: str) -> None:
    milter = TestMilter()
    async with door(milter, stages=ALL) as (client, kept):
        await client.say("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>", command)
        await until(lambda: b"A" in milter.commands)
        assert await send(client) == (250, "2.0.0")
        assert milter.commands.replace(b"H", b"") == b"CMRAMRTLLLNBE"
        assert milter.data(b"M")[-1] == b"<a@example.org>\0"
        assert milter.connections == 1
    assert kept.messages == [STORED]


async def test_earlier_events_are_sent_again_on_a_new_connection() -> None:
    milter = TestMilter(stops_at=b"T")
    async with door(milter, stages=ALL) as (client, kept):
        await client.say("MAIL FROM:<a@example.org>")
        await client.say("RCPT TO:<b@example.com>", "RCPT TO:<c@example.com>")
        milter.stops_at = b"x"
        milter.hang_up()
        await until(lambda: not milter.open)
        assert await send_rest(client) == (250, "2.0.0")
    assert milter.commands.startswith(b"CHMRRCHMRRTLLLNBE")
    assert kept.envelopes[0].rcpt_tos == ["b@example.com", "c@example.com"]


async def test_after_starttls_the_milter_gets_the_new_greeting(
    certificates: Certificates,
) -> None:
    milter = TestMilter()
    async with door(milter, stages=ALL, options={"tls_context": certificates.server}) as (
        client,
        _,
    ):
        await client.start_tls(certificates.client)
        await client.say("EHLO me.example")
        assert await send(client) == (250, "2.0.0")
        assert milter.commands == b"CHHMRTLLLNBE"
        assert milter.macros[b"H"]["tls_version"].startswith("TLS")
    assert milter.connections == 1


async def test_a_milter_that_accepts_at_rcpt_gets_no_further_events() -> None:
    milter = TestMilter(answers={b"R": frame(b"a")})
    async with door(milter, stages=["rcpt"]) as (client, kept):
        assert await send(client, "b@example.com", "c@example.com") == (250, "2.0.0")
    assert milter.commands.rstrip(b"AQ") == b"CHMR"
    assert kept.messages == [STORED]
