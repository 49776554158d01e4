"""The filter milter in sessions: the events that a milter gets, and its answers."""

from __future__ import annotations

import asyncio
import base64
import smtplib
import struct
from typing import TYPE_CHECKING, Any

import pytest
from aiosmtpd.controller import Controller
from blockbuster import BlockBuster
from support.handlers import Collect, check_password
from support.milter import TestMilter, frame
from support.milter_door import ALL_SILENT, BODY, HEADER, STORED, door, send
from support.ports import free_port
from support.scripted_server import listening
from support.server import until

from smtpd_fork.errors import HandlerError
from smtpd_fork.filters import Milter
from smtpd_fork.filters.milter_address import parse_milter_address
from smtpd_fork.handlers import Chain, load_handlers
from smtpd_fork.sanitizer import shown_handler
from smtpd_fork.setting_types import SettingError
from smtpd_fork.sinks import Discard, Relay, Sink

if TYPE_CHECKING:
    from smtpd_fork.message import Mail, Replies


@pytest.mark.parametrize("tcp", [False, True])
async def test_a_milter_gets_all_events_and_an_accepted_message_is_unchanged(tcp: bool) -> None:
    milter = TestMilter(protocol=0x100000)
    async with door(milter, tcp=tcp) as (client, kept):
        assert await send(client, "b@example.com", "c@example.com") == (250, "2.0.0")
        await client.say("QUIT")
        await until(lambda: milter.commands.endswith(b"Q"))
    assert milter.commands == b"CHMRRTLLLNBEQ"
    assert milter.data(b"M") == [b"<a@example.org>\0"]
    assert milter.data(b"R") == [b"<b@example.com>\0", b"<c@example.com>\0"]
    (connect,) = milter.data(b"C")
    assert connect.startswith(b"[127.0.0.1]\x004")
    assert connect.endswith(b"127.0.0.1\0")
    assert milter.fields == [
        (b"From", b" a@example.org"),
        (b"Subject", b"  two\n\tlines"),
        (b"Subject", b" second"),
    ]
    assert milter.body == BODY
    assert kept.messages == [STORED]
    at_connect, at_sender = milter.macros[b"C"], milter.macros[b"M"]
    assert at_connect["j"] == "mx.example.com"
    assert at_connect["_"] == "unknown [127.0.0.1]"
    assert at_connect["client_addr"] == at_connect["daemon_addr"] == "127.0.0.1"
    assert at_sender["mail_addr"] == "a@example.org"
    assert milter.macros[b"R"]["rcpt_addr"] == "c@example.com"
    assert milter.macros[b"E"] == {"i": at_sender["i"]}


async def test_the_milter_and_the_sink_get_the_same_queue_id() -> None:
    ids = []

    class Ids(Sink):
        async def deliver(self, mail: Mail) -> Replies:
            ids.append(mail.id)
            return "250 2.0.0 Ok"

    milter = TestMilter()
    async with door(milter, Ids()) as (client, _):
        await send(client)
        await send(client)
        assert milter.macros[b"E"]["i"] == ids[1] != ids[0]


async def test_a_milter_without_answers_before_the_end_gets_all_events_at_once() -> None:
    milter = TestMilter(protocol=ALL_SILENT)
    async with door(milter) as (client, kept):
        assert await send(client) == (250, "2.0.0")
    assert milter.commands.startswith(b"CHMRTLLLNBE")
    assert kept.messages == [STORED]


async def test_a_milter_of_version_2_gets_no_data_event_and_values_without_the_leading_space() -> (
    None
):
    milter = TestMilter(version=2, actions=0x3F, edits=[frame(b"h", b"X-A\0one\n two\0")])
    async with door(milter) as (client, kept):
        assert await send(client) == (250, "2.0.0")
    assert milter.commands.startswith(b"CHMRLLLNBE")
    assert milter.fields[1] == (b"Subject", b" two\n\tlines")
    assert kept.messages == [HEADER + b"\r\nX-A: one\r\n two\r\n\r\n" + BODY]


@pytest.mark.parametrize(
    ("text", "events"),
    [("", b"NE"), ("\r\n", b"NE"), ("text alone\r\n", b"NBE"), ("\r\ntext\r\n", b"NBE")],
)
async def test_of_a_message_without_a_header_a_milter_gets_no_field(
    text: str, events: bytes
) -> None:
    milter = TestMilter()
    async with door(milter) as (client, _):
        assert await send(client, text=text) == (250, "2.0.0")
    assert milter.commands.removesuffix(b"Q") == b"CHMRT" + events


async def test_unwanted_events_are_not_sent() -> None:
    milter = TestMilter(protocol=0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x20 | 0x40 | 0x200)
    async with door(milter) as (client, _):
        assert await send(client) == (250, "2.0.0")
        assert milter.commands[:1] == b"E"


async def test_the_macros_of_a_stage_are_those_that_the_milter_lists() -> None:
    symbols = (
        struct.pack(">I", 0) + b"{client_addr},j\0" + struct.pack(">I", 5) + b"i {mail_addr}\0"
    )
    milter = TestMilter(symbols=symbols)
    async with door(milter) as (client, _):
        await send(client)
    assert milter.macros[b"C"] == {"client_addr": "127.0.0.1", "j": "mx.example.com"}
    assert milter.macros[b"E"].keys() == {"i", "mail_addr"}
    assert milter.macros[b"R"].keys() == {"i", "rcpt_addr", "rcpt_host", "rcpt_mailer"}


async def test_a_milter_that_skips_the_body_gets_one_chunk() -> None:
    milter = TestMilter(answers={b"B": frame(b"s")}, protocol=0x400)
    async with door(milter) as (client, _):
        assert await send(client, text="A: b\r\n\r\n" + "x" * 70 + "\r\n" * 100_000) == (
            250,
            "2.0.0",
        )
    assert milter.commands.startswith(b"CHMRTLNBE")
    assert len(milter.body) == 65_535


async def test_the_chunks_of_a_large_body_are_the_whole_body() -> None:
    text = "A: b\r\n\r\n" + ("x" * 70 + "\r\n") * 20_000
    for protocol in (0, ALL_SILENT):
        milter = TestMilter(protocol=protocol)
        async with door(milter) as (client, _):
            assert await send(client, text=text) == (250, "2.0.0")
        assert milter.body == text[8:].encode()


# -- refusals --------------------------------------------------------------------------------------

REFUSALS = {
    b"r": (550, "5.7.1"),
    b"t": (451, "4.7.1"),
    b"4": (451, "4.7.1"),
    b"f": (451, "4.7.1"),
    b"y552 5.2.3 Too large\0": (552, "5.2.3"),
    b"y450-4.2.0 one\r\n450 4.2.0 two\0": (450, "4.2.0"),
    b"y550 no\x00": (550, "5.0.0"),
    b"y550 4.1.1 contradiction\0": (550, "5.0.0"),
    b"y421 4.3.2 closing\0": (451, "4.3.2"),
    b"y250 2.0.0 yes\0": (451, "4.7.1"),
    b"y\0": (451, "4.7.1"),
}


@pytest.mark.parametrize(
    ("answer", "at"),
    [(answer, b"E") for answer in REFUSALS]
    + [(b"y552 5.2.3 Too large\0", bytes([each])) for each in b"CHMRTLNB"],
)
async def test_a_refusal_at_any_stage_refuses_the_message(answer: bytes, at: bytes) -> None:
    milter = TestMilter(answers={at: frame(answer[:1], answer[1:])})
    async with door(milter) as (client, kept):
        assert await send(client) == REFUSALS[answer]
        assert (await client.say("NOOP")).code == 250
    assert kept.messages == []


async def test_a_reply_of_a_milter_is_one_line_of_printable_text() -> None:
    hostile = (
        b"550 5.7.1 \x1b[31mred\x07 50%% off\xff " + b"x" * 1000 + b"\r\n250 2.0.0 taken\r\n\0"
    )
    milter = TestMilter(answers={b"E": frame(b"y", hostile)})
    async with door(milter) as (client, _):
        await client.say("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>", "DATA")
        client.send("x\r\n.\r\n")
        reply = await client.reply()
    assert reply.code == 550
    assert len(reply.lines) == 1
    assert reply.text.startswith("5.7.1 ?[31mred? 50% off? xxx")
    assert len(reply.text) <= 410


async def test_changes_before_a_refusal_are_ignored() -> None:
    edits = [frame(b"h", b"X-A\0 v\0"), frame(b"-", b"<b@example.com>\0")]
    milter = TestMilter(answers={b"E": b"".join(edits) + frame(b"y", b"550 5.7.1 infected\0")})
    async with door(milter) as (client, kept):
        assert await send(client) == (550, "5.7.1")
        milter.answers = {}
        assert await send(client) == (250, "2.0.0")
    assert kept.messages == [STORED]


@pytest.mark.parametrize("at", [b"C", b"M", b"R", b"L", b"B", b"E"])
async def test_a_milter_that_accepts_early_does_not_get_the_message(at: bytes) -> None:
    milter = TestMilter(answers={at: frame(b"a")})
    async with door(milter) as (client, kept):
        assert await send(client) == (250, "2.0.0")
    assert (b"T" in milter.commands) == (at in {b"L", b"B", b"E"})
    assert kept.messages == [STORED]


async def test_a_discarded_message_gets_250_and_a_log_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    milter = TestMilter(answers={b"E": frame(b"d")})
    async with door(milter) as (client, kept):
        assert await send(client) == (250, "2.0.0")
    assert kept.messages == []
    (record,) = [each for each in caplog.records if each.name == "smtpd_fork.milter"]
    assert "message discarded: by the milter" in record.getMessage()
    assert record.__dict__["queue_id"]


@pytest.mark.parametrize(
    ("what", "expected"),
    [("defer", (451, "4.7.1")), ("refuse", (550, "5.7.1")), ("mark", (250, "2.0.0"))],
)
async def test_a_quarantined_message_is_never_delivered_unmarked(
    what: str, expected: tuple[int, str], caplog: pytest.LogCaptureFixture
) -> None:
    milter = TestMilter(edits=[frame(b"q", b"looks like\r\nX: spam\0")])
    async with door(milter, when_quarantined=what) as (client, kept):
        assert await send(client) == expected
    line = rb"X-Quarantine: looks like\r\nX: spam" + b"\r\n"  # escapes, not line ends
    assert kept.messages == ([line + STORED] if what == "mark" else [])
    assert "a message is quarantined" in caplog.text


# -- other properties ------------------------------------------------------------------------------


async def test_it_never_blocks_the_event_loop() -> None:
    milter = TestMilter(edits=[frame(b"h", b"X-A\0v\0")])
    async with door(milter, stages=["mail", "rcpt"]) as (client, kept):
        blockbuster = BlockBuster()
        blockbuster.activate()
        try:
            assert await send(client) == (250, "2.0.0")
        finally:
            blockbuster.deactivate()
    assert kept.messages


async def test_the_authenticated_user_is_in_the_macros() -> None:
    milter = TestMilter()
    options = {"session_options": {"authenticator": check_password, "auth_require_tls": False}}
    async with door(milter, options=options) as (client, _):
        login = base64.b64encode(b"\0bob\0pass").decode()
        assert (await client.say(f"AUTH PLAIN {login}")).code == 235
        await send(client)
    assert milter.macros[b"M"]["auth_type"] == "PLAIN"
    assert milter.macros[b"M"]["auth_authen"] == "bob"


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("unix:/run/m.sock", "unix:/run/m.sock"),
        ("local:/run/m.sock", "unix:/run/m.sock"),
        ("127.0.0.1:8891", "127.0.0.1:8891"),
        ("inet:8891@localhost", "localhost:8891"),
        ("inet6:8891@[::1]", "[::1]:8891"),
        ("inet6:8891@::1", "[::1]:8891"),
        ("inet:127.0.0.1:8891", "127.0.0.1:8891"),
    ],
)
def test_addresses_in_libmilters_syntax_are_accepted(text: str, address: str) -> None:
    assert str(parse_milter_address(text)) == address
    entry = f"milter:{text}"
    assert shown_handler(entry) == entry
    assert load_handlers([entry, "discard"]).handlers[0]


@pytest.mark.parametrize(
    "text", ["", "localhost", "mx:example.com", "inet:x@y", "a b:25", "u:p@h:1"]
)
def test_an_invalid_address_is_an_error(text: str) -> None:
    with pytest.raises(SettingError):
        parse_milter_address(text)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({}, "needs address"),
        ({"address": "127.0.0.1:1", "stages": ["eom"]}, "stages"),
        ({"address": "127.0.0.1:1", "when-down": "ignore"}, "when-down"),
        ({"address": "127.0.0.1:1", "whendown": "defer"}, "did you mean when-down?"),
    ],
)
def test_an_unknown_key_is_an_error(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(HandlerError, match=words):
        load_handlers([{"use": "milter", **keys}, "discard"])


@pytest.mark.parametrize("stages", [["data"], ["mail", "rcpt"]])
async def test_it_runs_under_aiosmtpd(stages: list[Any]) -> None:
    edits = [frame(b"h", b"X-A\0v\0"), frame(b"+", b"<n@example.net>\0")]
    milter, kept = TestMilter(edits=edits), Collect()
    async with listening(milter, tcp=True):
        chain = Chain([Milter(milter.address, stages=stages), kept])
        port = free_port("127.0.0.1")
        controller = Controller(chain, "127.0.0.1", port)
        await asyncio.to_thread(controller.start)
        try:
            await asyncio.to_thread(_send_stock, port)
        finally:
            await asyncio.to_thread(controller.stop)
    envelope = kept.envelopes[0]
    assert envelope.rcpt_tos == ["b@example.com", "n@example.net"]
    assert envelope.content == b"Subject: x\r\nX-A: v\r\n\r\nhello\r\n"


def _send_stock(port: int) -> None:
    with smtplib.SMTP("127.0.0.1", port, timeout=20) as client:
        client.sendmail("a@example.org", ["b@example.com"], "Subject: x\r\n\r\nhello\r\n")


def test_sinks_decide_whether_dsn_and_binary_messages_are_offered() -> None:
    milter = Milter("127.0.0.1:1")
    assert Chain([milter, Relay("127.0.0.1:1", dsn=True)]).supports_dsn
    assert not Chain([milter, Discard()]).supports_dsn
    assert Chain([milter, Discard()]).supports_binarymime


def test_without_stages_no_command_waits_for_the_milter() -> None:
    assert Chain([Milter("127.0.0.1:1"), Discard()]).accepts_any_recipient
