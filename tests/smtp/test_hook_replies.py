"""The client gets one well-formed reply to each command, whatever a hook returns or raises."""

from __future__ import annotations

import asyncio
import logging
import warnings
from itertools import cycle
from typing import TYPE_CHECKING, Any

import pytest
from aiosmtpd.smtp import MISSING, AuthResult
from hypothesis import given, settings
from hypothesis import strategies as st
from support.client import Client
from support.cuts import Result, dialogue
from support.replies import ODD, WELL_FORMED, assert_well_formed, everything, texts
from support.server import greeted, serve

from smtpd_fork.sinks import Discard
from smtpd_fork.smtp import SMTP

if TYPE_CHECKING:
    from collections.abc import Iterator


class Odd(Discard):
    """Returns the same value for every hook."""

    answer: Any = None

    def __init__(self) -> None:
        async def hook(*_: Any) -> Any:
            return self.answer

        for name in ("HELO", "EHLO", "MAIL", "NOOP", "VRFY", "RSET", "DATA", "QUIT", "RCPT"):
            setattr(self, f"handle_{name}", hook)


class Ready(SMTP):
    """A session in which every command is in sequence, whatever the previous replies."""

    def _create_session(self) -> Any:
        session = super()._create_session()
        session.host_name = "client.example"
        return session

    def _create_envelope(self) -> Any:
        envelope = super()._create_envelope()
        envelope.mail_from = "a@example.com"
        envelope.rcpt_tos.append("b@example.com")
        return envelope


class Drawn(Odd):
    """Returns the next of several values, raises it if it is an exception, or waits."""

    def __init__(self, answers: list[Any]) -> None:
        self.got: list[Any] = []
        self.left = cycle(answers)

        async def hook(*_: Any) -> Any:
            answer, wait = next(self.left)
            if wait:
                await asyncio.sleep(0)
            if isinstance(answer, BaseException):
                raise answer
            return answer

        for name in ("HELO", "EHLO", "MAIL", "NOOP", "VRFY", "RSET", "DATA", "RCPT", "exception"):
            setattr(self, f"handle_{name}", hook)


raised = st.sampled_from([ValueError(), SystemExit(3), asyncio.CancelledError(), GeneratorExit()])
answers = st.one_of(
    *(texts, texts.map(lambda text: "250 " + text), st.lists(texts, max_size=3), raised),
    *(st.sampled_from([MISSING, None, "421", "421 4.3.0 a\nb", b"250 ok"]), st.integers()),
)


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as running:
        yield running


@pytest.mark.parametrize("lmtp", [False, True])
@given(
    drawn=st.lists(st.tuples(answers, st.booleans()), min_size=1, max_size=6),
    commands=st.lists(
        st.sampled_from(["NOOP", "VRFY <a@b.c>", "RSET", "RCPT TO:<b@c.d>", "HELO x", "EHLO x"]),
        max_size=6,
    ),
)
@settings(deadline=None, max_examples=40)
def test_each_command_has_one_reply_whatever_hooks_return_or_raise(
    runner: asyncio.Runner, lmtp: bool, drawn: Any, commands: list[str]
) -> None:
    async def converse() -> Result:
        session = Ready(Drawn(drawn), hostname="mx.example", enhanced=True, lmtp=lmtp)
        packets = [f"{command}\r\n".encode() for command in commands]
        return await dialogue(session, [*packets, b"DATA\r\n", b"x\r\n.\r\n", b"HELP\r\n"])

    logging.disable()
    try:
        result = runner.run(converse())
    finally:
        logging.disable(logging.NOTSET)
    sent, count = result.sent, 0
    while match := WELL_FORMED.match(sent):
        sent, count = sent[match.end() :], count + 1
        last = match[0]
    assert sent == b""
    if result.closed:  # by a 421
        assert last.startswith(b"421")
        return
    # The greeting, two for DATA, HELP; in LMTP one for each accepted RCPT.
    if not lmtp:
        assert count == len(commands) + 4
    assert b"Supported commands" in last


async def test_an_unusual_answer_of_a_handler_is_one_reply_to_each_command() -> None:
    handler = Odd()
    commands = ["HELO x", "EHLO x", "NOOP", "VRFY <a@b.c>", "RSET", "RCPT TO:<b@example.com>"]
    async with serve(handler, session_class=Ready) as server:
        for handler.answer in ODD:
            async with await Client.to(server.addresses[0]) as client:
                assert (await client.reply()).code == 220
                for command in commands:
                    code = (await client.say(command)).code
                    assert code in {250, 252, 451, 550}, (command, handler.answer)
                assert (await client.say("DATA")).code == 354
                client.send("x\r\n.\r\nNOOP\r\nQUIT\r\n")
                assert_well_formed(await everything(client), 3)


@pytest.mark.parametrize("old", [False, True])
async def test_an_ehlo_hooks_lines_are_one_reply(old: bool) -> None:
    class New(Discard):
        lines: Any = None

        async def handle_EHLO(self, s: Any, ses: Any, env: Any, name: str, lines: Any) -> Any:
            return self.lines

    class Old(Discard):
        lines: Any = None

        async def handle_EHLO(self, s: Any, ses: Any, env: Any, name: str) -> Any:
            return "\n".join(self.lines)

    handler = Old() if old else New()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # aiosmtpd's, of the old hook
        async with serve(handler) as server:
            for handler.lines in (
                ["250-a", "250 b"],
                ["250-a", "SIZE"],
                ["550 no"],
                "250",
                [1],
                [],
            ):
                async with await Client.to(server.addresses[0]) as client:
                    await client.reply()
                    client.send("EHLO x\r\nNOOP\r\n")
                    assert_well_formed(await everything(client), 2)


async def test_a_connect_hooks_lines_are_one_reply() -> None:
    class Busy(Discard):
        async def handle_CONNECT(self, server: Any, session: Any) -> str:
            return "554 5.7.1 Not here\nnor there"

    async with serve(Busy()) as server, await Client.to(server.addresses[0]) as client:
        assert await client.reply() == (554, ["5.7.1 Not here", "5.7.1 nor there"])
        assert await client.ended()


@pytest.mark.parametrize(
    ("success", "message", "code"),
    [
        (True, "235 2.7.0 Welcome\nto us\r\n", 235),
        (False, "535 5.7.8 No\n", 535),
        (True, "welcome", 451),
        (True, "535 5.7.8 No", 451),
        (False, "235 2.7.0 Yes", 451),
        (False, "334 ", 451),
    ],
)
async def test_the_message_of_an_authenticator_is_one_reply_that_matches_its_result(
    success: bool, message: str, code: int
) -> None:
    def authenticator(*_: Any) -> AuthResult:
        return AuthResult(success=success, handled=False, message=message)

    options = {"authenticator": authenticator, "auth_require_tls": False}
    async with greeted(Discard(), session_options=options) as client:
        assert (await client.say("AUTH PLAIN AGEAYg==")).code == code
        again = (await client.say("AUTH PLAIN AGEAYg==")).code
        assert again == (503 if code == 235 else code)  # authenticated only if the reply says so
        client.send("NOOP\r\n")
        assert_well_formed(await everything(client), 1)


async def test_a_mechanism_that_replies_and_fails_causes_one_reply() -> None:
    class Mechanism(Discard):
        async def auth_X(self, server: Any, args: list[str]) -> Any:
            return await server.challenge_auth("who?")  # pushes 501 itself, and returns MISSING

    async with greeted(Mechanism(), session_options={"auth_require_tls": False}) as client:
        assert (await client.say("AUTH X")).code == 334
        client.send("*\r\nNOOP\r\n")
        assert_well_formed(await everything(client), 2)


async def test_handle_exceptions_status_is_one_reply() -> None:
    class Fails:
        status: Any = None

        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
            raise ValueError

        async def handle_exception(self, error: Exception) -> Any:
            return self.status

    handler = Fails()
    async with serve(handler) as server:
        for handler.status in ODD:
            async with await Client.to(server.addresses[0]) as client:
                await client.greet()
                await client.say("MAIL FROM:<a@b.c>", "RCPT TO:<d@e.f>", "DATA")
                client.send("x\r\n.\r\nNOOP\r\nQUIT\r\n")
                assert_well_formed(await everything(client), 3)


@pytest.mark.parametrize("status", ["250 ok", "250 ok\r\n", "250 a\nb", b"250 ok", "nothing", ""])
async def test_text_that_a_subclass_pushes_is_one_reply(status: Any) -> None:
    class Pushes(SMTP):
        async def smtp_XFOO(self, arg: str | None) -> None:
            await self.push(status)

        async def smtp_XLINES(self, arg: str | None) -> None:
            await self.push("250-one\r\n")
            await self.push("250 two")

    async with (
        serve(Discard(), session_class=Pushes) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.reply()
        client.send("XFOO\r\nNOOP\r\nXLINES\r\nNOOP\r\n")
        assert_well_formed(await everything(client), 4)


@pytest.mark.parametrize("answer", [None, "250 ok", "250 a\nb\r\n", "nothing", 7])
async def test_process_message_causes_one_reply(answer: Any) -> None:
    class Old:
        def process_message(self, *_: Any) -> Any:
            return answer

    with pytest.warns(DeprecationWarning, match="process_message"):
        async with greeted(Old()) as client:
            await client.say("MAIL FROM:<a@b.c>", "RCPT TO:<d@e.f>", "DATA")
            client.send("x\r\n.\r\nNOOP\r\n")
            assert_well_formed(await everything(client), 2)
