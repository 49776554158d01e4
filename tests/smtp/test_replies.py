"""Whatever a handler returns, the client receives exactly one well-formed reply to each command."""

from __future__ import annotations

import asyncio
import logging
import re
import warnings
from itertools import cycle
from typing import TYPE_CHECKING, Any

import pytest
from aiosmtpd.smtp import MISSING, AuthResult
from hypothesis import given, settings
from hypothesis import strategies as st
from support.client import Client
from support.cuts import Result, dialogue
from support.server import serve

from smtpd_fork import Refusal
from smtpd_fork.dialogue import Reply
from smtpd_fork.dialogue.reply import LONGEST_TEXT, MOST_LINES, answer_of, replies_of, sendable
from smtpd_fork.sinks import Discard
from smtpd_fork.smtp import SMTP

if TYPE_CHECKING:
    from collections.abc import Iterator

WELL_FORMED = re.compile(
    rb"(?:([2-5][0-9][0-9])-[^\x00-\x08\x0a-\x1f\x7f]*\r\n(?=\1))*"
    rb"[2-5][0-9][0-9](?: [^\x00-\x08\x0a-\x1f\x7f]*)?\r\n"
)
"""RFC 5321 4.2; a tab is in its ``textstring`` as well, and octets of UTF-8 (RFC 6531)."""


def assert_well_formed(sent: bytes, count: int = 1) -> None:
    end = 0
    for _ in range(count):
        match = WELL_FORMED.match(sent, end)
        assert match is not None, sent[end:]
        assert all(len(line) <= 512 for line in match[0].splitlines(keepends=True))
        end = match.end()
    assert end == len(sent), sent[end:]


# -- the type ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reply"),
    [
        ("250 Ok", "250 Ok"),
        ("250", "250"),
        ("250 ", "250"),
        ("250 Ok\r\n", "250 Ok"),
        ("250 Ok\n\n", "250 Ok"),
        ("550 a\nb", "550-a\r\n550 b"),
        ("550 a\r\nb", "550-a\r\n550 b"),
        ("550 a\rb", "550-a\r\n550 b"),
        ("550 a\n\nb", "550-a\r\n550-\r\n550 b"),
        ("550-a\r\n550 b", "550-a\r\n550 b"),
        ("550 a\r\n550 b", "550-a\r\n550 b"),
        ("550-a\n550-b", "550-a\r\n550 b"),
        ("550-", "550"),
        ("550-a", "550 a"),
        ("550 5.7.1 a\nb", "550-5.7.1 a\r\n550 5.7.1 b"),
        ("550-5.7.1 a\r\n550 5.7.2 b", "550-5.7.1 a\r\n550 5.7.2 b"),
        ("550 a\n192 addresses", "550-a\r\n550 192 addresses"),
        ("550 a\0b\x1b[2J", "550 a?b?[2J"),
        ("550 gr\u00fc\u00dfe \ud800", "550 gr\u00fc\u00dfe ?"),
        (b"250 gr\xfc", "250 gr\ufffd"),
    ],
)
def test_a_text_with_one_clear_meaning_is_put_into_form(text: Any, reply: str) -> None:
    assert Reply(text) == reply
    assert Reply(Reply(text)) == reply


@pytest.mark.parametrize(
    "text",
    [
        *("", "ok", " 250 ok", "\r\n250 ok", "25 ok", "2500 ok", "250ok", "250_ok"),
        *("150 a", "650 a", "\u0662\u0665\u0660 ok", "250 a\r\n550 b", "550-a\n551 b"),
    ],
)
def test_a_text_without_a_code_or_with_several_is_no_reply(text: str) -> None:
    with pytest.raises(ValueError, match="reply"):
        Reply(text)
    with pytest.raises(TypeError, match="X has to return a reply"):
        answer_of("X", text)


def test_a_reply_has_its_code_and_lines() -> None:
    reply = Reply("550 5.7.1 No\nSee the list")
    assert (reply.code, reply.lines) == (550, ["5.7.1 No", "5.7.1 See the list"])
    assert isinstance(reply, str)


def test_a_long_line_goes_on_in_the_next_one() -> None:
    reply = Reply("550 5.7.1 " + "word " * 300)
    assert len(reply.lines) == 3
    assert all(line.startswith("5.7.1 word") for line in reply.lines)
    assert " ".join(line.removeprefix("5.7.1 ") for line in reply.lines).split() == ["word"] * 300
    assert_well_formed(reply.encode() + b"\r\n")
    octets = Reply("550 " + "\u00fc" * 600)
    assert "".join(octets.lines) == "\u00fc" * 600
    assert_well_formed(octets.encode() + b"\r\n")


@pytest.mark.parametrize("text", ["x" * 10_000_000, "x\n" * 5_000_000, "x " * 5_000_000])
def test_a_reply_has_an_end(text: str) -> None:
    reply = Reply("550 " + text)
    assert len(reply.lines) <= MOST_LINES
    assert len(reply.encode()) <= MOST_LINES * (LONGEST_TEXT + 6)


@pytest.mark.parametrize("code", ["334", "354"])
def test_a_hook_cannot_ask_for_more(code: str) -> None:
    with pytest.raises(TypeError, match="X has to return a reply"):
        answer_of("X", f"{code} go on")


parts = st.sampled_from(
    [
        "250",
        "550",
        "334",
        "2",
        " ",
        "-",
        "\r\n",
        "\n",
        "\r",
        "a",
        "\0",
        "\u00fc",
        "\ud800",
        "2.0.0 ",
    ]
)
texts = st.lists(parts, max_size=12).map("".join) | st.text(max_size=2000)


@given(texts | texts.map(lambda text: "250 " + text) | st.binary(max_size=30))
def test_whatever_a_hook_answers_is_one_reply_or_an_error(status: str | bytes) -> None:
    try:
        answer = answer_of("X", status)
    except TypeError:
        return
    assert_well_formed(answer.encode() + b"\r\n")
    assert answer_of("X", answer) == answer
    assert answer[:3] == (status.decode("latin-1") if isinstance(status, bytes) else status)[:3]


@given(st.lists(st.sampled_from(["250 a", "550-a\r\n550 b", "450"]), min_size=1, max_size=9))
def test_replies_that_were_joined_are_found_again(replies: list[str]) -> None:
    assert replies_of("\r\n".join(replies)) == replies


@given(texts.map(lambda text: "250-" + text))
def test_what_is_pushed_is_whole_lines_of_one_code(status: str) -> None:
    try:
        lines = sendable(status).encode()
    except ValueError:
        return
    more_follow = lines.split(b"\r\n")[-1][3:4] == b"-"
    assert_well_formed(lines + b"\r\n250 end\r\n", 1 if more_follow else 2)


@given(texts, texts)
def test_a_refusal_of_the_gate_is_one_line_whatever_its_words_are(text: str, key: str) -> None:
    refusal = Refusal("rule", key, 2, 1, text=text + "{key}")
    assert_well_formed(refusal.reply("mx.example.com"))
    assert refusal.reply("mx.example.com").count(b"\r\n") == 1


# -- over the wire -----------------------------------------------------------------------------

ODD: list[Any] = [
    *("550 a\nb", "250 ok\r\n", "550-", "250-a\r\n250-b", "", "ok", "999 no", "354 go on"),
    *("250 a\r\n550 b", "250 gr\u00fc\u00df\ud800", "250 " + "x" * 2000, "250\0", "\r\n250 ok"),
    *(b"250 ok", b"\xff", None, 250, [], ["250 ok"], object(), MISSING),
]
"""What handlers were seen to return, or might."""


class Odd(Discard):
    """Answers every hook with the same thing."""

    answer: Any = None

    def __init__(self) -> None:
        async def hook(*_: Any) -> Any:
            return self.answer

        for name in ("HELO", "EHLO", "MAIL", "NOOP", "VRFY", "RSET", "DATA", "QUIT", "RCPT"):
            setattr(self, f"handle_{name}", hook)


class Ready(SMTP):
    """A session in which every command is in its place, whatever was answered before."""

    def _create_session(self) -> Any:
        session = super()._create_session()
        session.host_name = "client.example"
        return session

    def _create_envelope(self) -> Any:
        envelope = super()._create_envelope()
        envelope.mail_from = "a@example.com"
        envelope.rcpt_tos.append("b@example.com")
        return envelope


async def everything(client: Client) -> bytes:
    client.writer.write_eof()
    return await client.reader.read()


class Drawn(Odd):
    """Answers each time with the next of several things, raises what is an exception, or waits."""

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
def test_whatever_hooks_return_or_raise_the_replies_are_as_many_as_the_commands(
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
    # The greeting, DATA's two, HELP; in LMTP those that RCPT was answered 2yz count.
    if not lmtp:
        assert count == len(commands) + 4
    assert b"Supported commands" in last


async def test_a_handlers_odd_answer_is_one_reply_to_each_command() -> None:
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


async def test_in_lmtp_it_is_one_reply_to_each_recipient() -> None:
    class Answers:
        answer: Any = None

        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> Any:
            envelope.rcpt_tos.clear()  # a handler may
            return self.answer

    handler = Answers()
    several = ["250 a\r\n250 b", "250 a\r\n550-b\r\n550 c", "250 a\r\n250 b\r\n250 c"]
    listed = [["250 a", "550 b\nc"], ["250 a", MISSING], ("250 a\r\n", "450")]
    async with serve(handler, listen=["lmtp:127.0.0.1:0"]) as server:
        for handler.answer in (*ODD, *several, *listed):
            async with await Client.to(server.addresses[0]) as client:
                await client.reply()
                await client.say("LHLO x")
                for count in (1, 2, 3):
                    recipients = ["RCPT TO:<b@example.com>"] * count
                    await client.say("MAIL FROM:<a@example.com>", *recipients, "DATA")
                    client.send("x\r\n.\r\n")
                    codes = [(await client.reply()).code for _ in range(count)]
                    assert set(codes) <= {250, 450, 451, 550}
                    assert (await client.say("NOOP")) == (250, ["2.0.0 OK"]), handler.answer
                client.send("QUIT\r\n")
                assert_well_formed(await everything(client), 1)


async def test_mailmans_replies_are_one_for_each_recipient() -> None:
    """Mailman 3's LMTP handler joins them with CR LF, as aiosmtpd sends them on as they are."""

    class Joins:
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
            return "\r\n".join(
                "250 Ok" if to.startswith("a") else "550 Requested action not taken"
                for to in envelope.rcpt_tos
            )

    async with (
        serve(Joins(), listen=["lmtp:127.0.0.1:0"]) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.reply()
        await client.say("LHLO x")
        for _ in range(2):  # the second transaction reads replies of its own
            recipients = [f"RCPT TO:<{name}@example.com>" for name in ("a1", "b1", "a2")]
            assert (await client.say("MAIL FROM:<a@b.c>", *recipients, "DATA")).code == 354
            client.send("x\r\n.\r\n")
            assert [(await client.reply()).code for _ in range(3)] == [250, 550, 250]
        assert (await client.say("NOOP")).code == 250


async def test_lmtp_replies_go_to_the_recipients_that_were_accepted() -> None:
    """A hook may accept a recipient, and deliver to others, or to none."""

    class Alias(Discard):
        async def handle_RCPT(
            self, server: Any, session: Any, envelope: Any, address: str, options: list[str]
        ) -> str:
            if address.startswith("no"):
                return "550 5.1.1 Unknown"
            envelope.rcpt_tos += ["one@b.c", "two@b.c"]
            return "250 2.1.5 Ok"

    async with (
        serve(Alias(), listen=["lmtp:127.0.0.1:0"]) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.reply()
        await client.say("LHLO x", "MAIL FROM:<a@b.c>", "RCPT TO:<no@b.c>", "RCPT TO:<all@b.c>")
        assert (await client.say("DATA")).code == 354
        client.send("x\r\n.\r\nNOOP\r\n")
        assert_well_formed(await everything(client), 2)


async def test_in_lmtp_what_comes_behind_a_message_is_answered_once() -> None:
    async with (
        serve(Discard(), listen=["lmtp:127.0.0.1:0"]) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.reply()
        recipients = ["RCPT TO:<b@example.com>"] * 3
        for end in ("DATA\r\nx\r\n.\r\n", "BDAT 3 LAST\r\nx\r\n"):
            await client.say("LHLO x", "MAIL FROM:<a@b.c>", *recipients)
            client.send(end)
            codes = [(await client.reply()).code for _ in range(3 + end.startswith("DATA"))]
            assert codes[-3:] == [250] * 3
            assert (await client.say("BDAT 0 LAST")).code == 503
            assert (await client.say("DATA")).code == 503
        client.send("QUIT\r\n")
        assert_well_formed(await everything(client), 1)


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
async def test_an_authenticators_message_is_one_reply_and_says_what_is_so(
    success: bool, message: str, code: int
) -> None:
    def authenticator(*_: Any) -> AuthResult:
        return AuthResult(success=success, handled=False, message=message)

    options = {"authenticator": authenticator, "auth_require_tls": False}
    async with (
        serve(Discard(), session_options=options) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.greet()
        assert (await client.say("AUTH PLAIN AGEAYg==")).code == code
        again = (await client.say("AUTH PLAIN AGEAYg==")).code
        assert again == (503 if code == 235 else code)  # authenticated only if it was told so
        client.send("NOOP\r\n")
        assert_well_formed(await everything(client), 1)


async def test_a_mechanism_that_has_answered_and_refuses_is_one_reply() -> None:
    class Mechanism(Discard):
        async def auth_X(self, server: Any, args: list[str]) -> Any:
            return await server.challenge_auth("who?")  # pushes 501 itself, and returns MISSING

    async with (
        serve(Mechanism(), session_options={"auth_require_tls": False}) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.greet()
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
async def test_what_a_subclass_pushes_is_one_reply(status: Any) -> None:
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
async def test_an_old_process_message_is_one_reply(answer: Any) -> None:
    class Old:
        def process_message(self, *_: Any) -> Any:
            return answer

    with pytest.warns(DeprecationWarning, match="process_message"):
        async with serve(Old()) as server, await Client.to(server.addresses[0]) as client:
            await client.greet()
            await client.say("MAIL FROM:<a@b.c>", "RCPT TO:<d@e.f>", "DATA")
            client.send("x\r\n.\r\nNOOP\r\n")
            assert_well_formed(await everything(client), 2)
