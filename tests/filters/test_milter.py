"""The filter milter in sessions: what a milter is told, and what becomes of its answers."""

from __future__ import annotations

import asyncio
import base64
import smtplib
import struct
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from aiosmtpd.controller import Controller
from blockbuster import BlockBuster
from support.client import Client, code_and_enhanced
from support.handlers import Collect, check_password
from support.milter import TestMilter, changed, frame, milter_server
from support.ports import free_port
from support.server import serve, until

from smtpd_fork.errors import HandlerError
from smtpd_fork.filters import Milter
from smtpd_fork.filters.milter_address import parse_milter_address
from smtpd_fork.handlers import Chain, load_handlers
from smtpd_fork.handlers.route import Route
from smtpd_fork.sanitizer import shown_handler
from smtpd_fork.setting_types import SettingError
from smtpd_fork.sinks import Discard, Relay, Sink

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from smtpd_fork.message import Mail, Replies

MESSAGE = (
    "From: a@example.org\r\nSubject:  two\r\n\tlines\r\nSubject: second\r\n\r\n"
    "hello\r\n.\r\nbye\r\n"
)
AS_SENT = MESSAGE.replace("\r\n.\r\n", "\r\n..\r\n")
STORED = MESSAGE.encode()
HEADER, _, BODY = STORED.partition(b"\r\n\r\n")
ALL_SILENT = 0xFF080 | 0x100000


@asynccontextmanager
async def door(milter: TestMilter, *more: Any, **keys: Any) -> AsyncIterator[tuple[Client, Any]]:
    """Serve behind a milter; yield a client that was greeted, and the handler that has messages."""
    tcp = keys.pop("tcp", False)
    options = keys.pop("options", {})
    kept = Collect()
    async with milter_server(milter, tcp=tcp):
        chain = [Milter(milter.address, **keys), *more, kept]
        async with (
            serve(chain, **options) as server,
            await Client.to(server.addresses[0]) as client,
        ):
            await client.greet()
            yield client, kept


async def send(client: Client, *recipients: str, text: str = AS_SENT) -> tuple[int, str]:
    to = [f"RCPT TO:<{each}>" for each in recipients or ("b@example.com",)]
    reply = await client.say("MAIL FROM:<a@example.org>", *to, "DATA")
    assert reply.code == 354, reply
    client.send(f"{text}.\r\n")
    return code_and_enhanced(await client.reply())


@pytest.mark.parametrize("tcp", [False, True])
async def test_a_milter_that_only_looks_is_told_all_and_the_message_stays(tcp: bool) -> None:
    milter = TestMilter(protocol=0x100000)
    async with door(milter, tcp=tcp) as (client, kept):
        assert await send(client, "b@example.com", "c@example.com") == (250, "2.0.0")
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


async def test_the_queue_id_of_a_milter_is_that_of_the_sink() -> None:
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


async def test_a_milter_that_answers_nothing_before_the_end_gets_it_in_one_go() -> None:
    milter = TestMilter(protocol=ALL_SILENT)
    async with door(milter) as (client, kept):
        assert await send(client) == (250, "2.0.0")
    assert milter.commands.startswith(b"CHMRTLLLNBE")
    assert kept.messages == [STORED]


async def test_a_milter_of_version_2_gets_no_data_and_values_without_their_space() -> None:
    milter = TestMilter(version=2, actions=0x3F, edits=[frame(b"h", b"X-A\0one\n two\0")])
    async with door(milter) as (client, kept):
        assert await send(client) == (250, "2.0.0")
    assert milter.commands.startswith(b"CHMRLLLNBE")
    assert milter.fields[1] == (b"Subject", b"two\n\tlines")
    assert kept.messages == [HEADER + b"\r\nX-A: one\r\n two\r\n\r\n" + BODY]


async def test_what_a_milter_does_not_want_it_is_not_told() -> None:
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


async def test_a_milter_that_skips_the_body_gets_one_piece_of_it() -> None:
    milter = TestMilter(answers={b"B": frame(b"s")})
    async with door(milter) as (client, _):
        assert await send(client, text="A: b\r\n\r\n" + "x" * 70 + "\r\n" * 100_000) == (
            250,
            "2.0.0",
        )
    assert milter.commands.startswith(b"CHMRTLNBE")
    assert len(milter.body) == 65_535


async def test_a_large_body_comes_in_pieces_that_are_the_body() -> None:
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
        await until(lambda: milter.commands[-2:] == at + b"Q")
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


async def test_changes_before_a_refusal_are_void() -> None:
    edits = [frame(b"h", b"X-A\0 v\0"), frame(b"-", b"<b@example.com>\0")]
    milter = TestMilter(answers={b"E": b"".join(edits) + frame(b"y", b"550 5.7.1 infected\0")})
    async with door(milter) as (client, kept):
        assert await send(client) == (550, "5.7.1")
        milter.answers = {}
        assert await send(client) == (250, "2.0.0")
    assert kept.messages == [STORED]


@pytest.mark.parametrize("at", [b"C", b"M", b"R", b"L", b"B", b"E"])
async def test_a_milter_that_accepts_is_told_no_more(at: bytes) -> None:
    milter = TestMilter(answers={at: frame(b"a")})
    async with door(milter) as (client, kept):
        assert await send(client) == (250, "2.0.0")
        await until(lambda: milter.commands.endswith(at + b"Q"))
    assert kept.messages == [STORED]


async def test_a_message_that_is_discarded_gets_250_and_a_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    milter = TestMilter(answers={b"E": frame(b"d")})
    async with door(milter) as (client, kept):
        assert await send(client) == (250, "2.0.0")
    assert kept.messages == []
    (record,) = [each for each in caplog.records if each.name == "smtpd_fork.milter"]
    assert "message discarded: the milter discards it" in record.getMessage()
    assert record.__dict__["queue_id"]


@pytest.mark.parametrize(
    ("what", "expected"),
    [("defer", (451, "4.7.1")), ("refuse", (550, "5.7.1")), ("mark", (250, "2.0.0"))],
)
async def test_a_message_in_quarantine_is_never_delivered_unmarked(
    what: str, expected: tuple[int, str], caplog: pytest.LogCaptureFixture
) -> None:
    milter = TestMilter(edits=[frame(b"q", b"looks like\r\nX: spam\0")])
    async with door(milter, when_quarantined=what) as (client, kept):
        assert await send(client) == expected
    line = rb"X-Quarantine: looks like\r\nX: spam" + b"\r\n"  # escapes, not line ends
    assert kept.messages == ([line + STORED] if what == "mark" else [])
    assert "quarantines a message" in caplog.text


# -- changes ---------------------------------------------------------------------------------------

EDITS: dict[str, tuple[list[bytes], bytes]] = {
    "a field is added behind the others": (
        [frame(b"h", b"X-A\0 one\n\ttwo\0")],
        HEADER + b"\r\nX-A: one\r\n\ttwo\r\n\r\n" + BODY,
    ),
    "a field is inserted on top, or at its place": (
        [frame(b"i", changed(0, b"X-A", b" 0")), frame(b"i", changed(2, b"X-B", b" 2"))],
        STORED.replace(b"From:", b"X-A: 0\r\nFrom:").replace(
            b"Subject:  two", b"X-B: 2\r\nSubject:  two"
        ),
    ),
    "a field is inserted past the end": (
        [frame(b"i", changed(4_000_000_000, b"X-A", b" v"))],
        HEADER + b"\r\nX-A: v\r\n\r\n" + BODY,
    ),
    "the second of a name is changed, in capitals or not": (
        [frame(b"m", changed(2, b"SUBJECT", b" new"))],
        STORED.replace(b"Subject: second", b"SUBJECT: new"),
    ),
    "the first of a name is deleted, and the second is the first then": (
        [frame(b"m", changed(1, b"Subject", b"")), frame(b"m", changed(1, b"Subject", b" n"))],
        b"From: a@example.org\r\nSubject: n\r\n\r\n" + BODY,
    ),
    "a change past the end adds": (
        [frame(b"m", changed(9, b"Subject", b" new")), frame(b"m", changed(1, b"X", b" y"))],
        HEADER + b"\r\nSubject: new\r\nX: y\r\n\r\n" + BODY,
    ),
    "a deletion past the end does nothing": (
        [frame(b"m", changed(9, b"Subject", b""))],
        STORED,
    ),
    "no value ends the header or begins a field": (
        [frame(b"h", b"X-A\0 v\r\n\r\nX-B: w\rx\n \n\ny\0")],
        HEADER + b"\r\nX-A: v\r\n\tX-B: w x\r\n\ty\r\n\r\n" + BODY,
    ),
    "octets of a value stay as they are": (
        [frame(b"h", b"X-A\0   \xff \x1b v  \0")],
        HEADER + b"\r\nX-A:   \xff \x1b v  \r\n\r\n" + BODY,
    ),
    "the body is replaced by the pieces": (
        [frame(b"b", b"new\r\nbo"), frame(b"b", b"dy\nwith\rends\r\n")],
        HEADER + b"\r\n\r\nnew\r\nbody\r\nwith\r\nends\r\n",
    ),
    "the body is replaced by nothing": ([frame(b"b", b"")], HEADER + b"\r\n\r\n"),
}


@pytest.mark.parametrize("name", EDITS)
async def test_changes_of_the_message(name: str) -> None:
    edits, expected = EDITS[name]
    milter = TestMilter(edits=edits, protocol=0x100000)
    async with door(milter) as (client, kept):
        assert await send(client) == (250, "2.0.0")
    assert kept.messages == [expected]


async def test_a_later_milter_sees_what_an_earlier_one_has_changed() -> None:
    second = TestMilter()
    first = TestMilter(
        edits=[
            frame(b"i", changed(0, b"X-A", b"v")),
            frame(b"+", b"<new@example.com>\0"),
            frame(b"e", b"<bounce@example.org>\0"),
            frame(b"b", b"other\r\n"),
        ]
    )
    async with milter_server(second), door(first, Milter(second.address)) as (client, kept):
        assert await send(client) == (250, "2.0.0")
    assert second.fields[0] == (b"X-A", b"v")
    assert second.body == b"other\r\n"
    assert second.data(b"M") == [b"<bounce@example.org>\0"]
    assert second.data(b"R") == [b"<b@example.com>\0", b"<new@example.com>\0"]
    assert kept.envelopes[0].mail_from == "bounce@example.org"


ENVELOPES: dict[str, tuple[list[bytes], str, list[str]]] = {
    "recipients are added and deleted": (
        [frame(b"+", b"<n@example.net>\0"), frame(b"-", b"<B@example.com>\0")],
        *("a@example.org", ["c@example.com", "n@example.net"]),
    ),
    "a recipient that is there is not added": (
        [frame(b"+", b"b@example.com\0")],
        *("a@example.org", ["b@example.com", "c@example.com"]),
    ),
    "the sender becomes another, or the null sender": (
        [frame(b"e", b"<x@example.net>\0"), frame(b"e", b"<>\0")],
        *("<>", ["b@example.com", "c@example.com"]),
    ),
    "one that is not there is not deleted": (
        [frame(b"-", b"<x@example.com>\0")],
        *("a@example.org", ["b@example.com", "c@example.com"]),
    ),
}


@pytest.mark.parametrize("name", ENVELOPES)
async def test_changes_of_the_envelope(name: str) -> None:
    edits, sender, recipients = ENVELOPES[name]
    milter = TestMilter(edits=edits)
    async with door(milter) as (client, kept):
        assert await send(client, "b@example.com", "c@example.com") == (250, "2.0.0")
    envelope = kept.envelopes[0]
    assert (envelope.mail_from, envelope.rcpt_tos) == (sender, recipients)
    assert len(envelope.rcpt_params) == len(recipients)


async def test_parameters_of_added_recipients_and_senders_are_those_of_dsn() -> None:
    edits = [
        frame(b"2", b"<n@example.net>\0NOTIFY=NEVER ORCPT=rfc822;b@x FOO=bar\0"),
        frame(b"e", b"<x@example.net>\0ENVID=abc SIZE=1\0"),
    ]
    async with door(TestMilter(edits=edits)) as (client, kept):
        assert await send(client) == (250, "2.0.0")
    envelope = kept.envelopes[0]
    assert envelope.rcpt_params == [{}, {"NOTIFY": "NEVER", "ORCPT": "rfc822;b@x"}]
    assert envelope.mail_params == {"ENVID": "abc"}


async def test_a_message_without_a_recipient_left_is_discarded() -> None:
    milter = TestMilter(edits=[frame(b"-", b"<b@example.com>\0")])
    async with door(milter) as (client, kept):
        assert await send(client) == (250, "2.0.0")
    assert kept.messages == []


class Takes(Sink):
    """Keeps recipients; refuses those that it is told to."""

    def __init__(self, *refused: str) -> None:
        self.refused = refused
        self.taken: list[str] = []

    async def deliver(self, mail: Mail) -> Replies:
        names = [each.address for each in mail.recipients]
        self.taken += names
        return ["550 5.1.1 No" if name in self.refused else "250 2.0.0 Ok" for name in names]


async def test_an_added_recipient_goes_to_its_own_sink() -> None:
    one, other = Takes(), Takes()
    milter = TestMilter(edits=[frame(b"+", b"<n@example.net>\0")])
    routes = [Route(one, recipients=["example.com"]), Route(other, recipients=["example.net"])]
    async with milter_server(milter), serve([Milter(milter.address), *routes]) as server:
        async with await Client.to(server.addresses[0]) as client:
            await client.greet()
            assert await send(client) == (250, "2.0.0")
            milter.edits = [frame(b"+", b"<n@example.org>\0")]
            assert await send(client) == (550, "5.1.1")
    assert (one.taken, other.taken) == (["b@example.com"] * 2, ["n@example.net"])


@pytest.mark.parametrize("refused", [(), ("n@example.net",)])
async def test_in_lmtp_every_recipient_gets_the_worst_reply_of_changed_ones(
    refused: tuple[str, ...],
) -> None:
    edits = [
        frame(b"+", b"<n@example.net>\0"),
        frame(b"+", b"<o@example.net>\0"),
        frame(b"-", b"<b@example.com>\0"),
    ]
    milter, sink = TestMilter(edits=edits), Takes(*refused)
    listen = ["lmtp:127.0.0.1:0"]
    async with (
        milter_server(milter),
        serve([Milter(milter.address), sink], listen=listen) as server,
    ):
        async with await Client.to(server.addresses[0]) as client:
            await client.reply()
            await client.say("LHLO me")
            to = [f"RCPT TO:<{each}@example.com>" for each in "bc"]
            assert (await client.say("MAIL FROM:<a@example.org>", *to, "DATA")).code == 354
            client.send("x\r\n.\r\n")
            codes = [(await client.reply()).code for _ in range(2)]
            assert codes == ([550] * 2 if refused else [250] * 2)
            assert (await client.say("NOOP")).code == 250
    assert sink.taken == ["c@example.com", "n@example.net", "o@example.net"]


# -- a milter that is down, broken or hostile ------------------------------------------------------

BROKEN: dict[str, TestMilter] = {
    "options too short": TestMilter(says=frame(b"O", b"\0\0\0\6")),
    "version 1": TestMilter(version=1),
    "version 7": TestMilter(version=7),
    "an action that was not offered": TestMilter(actions=0x200),
    "a protocol flag that was not offered": TestMilter(protocol=0x800),
    "another answer to the options": TestMilter(says=frame(b"c")),
    "HTTP": TestMilter(says=b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    "a frame without a command": TestMilter(says=b"\0\0\0\0"),
    "a frame of 4 GiB": TestMilter(answers={b"M": b"\xff\xff\xff\xffc"}),
    "an unknown answer": TestMilter(answers={b"L": frame(b"Z")}),
    "a change before the end": TestMilter(answers={b"L": frame(b"h", b"X\0y\0")}),
    "skip where nothing follows": TestMilter(answers={b"M": frame(b"s")}),
    "an answer to nothing": TestMilter(answers={b"M": frame(b"c") * 3}),
    "a field without a name": TestMilter(edits=[frame(b"h", b"\0v\0")]),
    "a field with a colon in its name": TestMilter(edits=[frame(b"h", b"X: y\r\nZ\0v\0")]),
    "a field with a NUL": TestMilter(edits=[frame(b"h", b"X\0v\0w\0")]),
    "a change without a number": TestMilter(edits=[frame(b"m", b"X")]),
    "a recipient with a line end": TestMilter(edits=[frame(b"+", b"<b@x>\r\nDATA\0")]),
    "a recipient that is none": TestMilter(edits=[frame(b"+", b"<>\0")]),
    "a sender with a space": TestMilter(edits=[frame(b"e", b"<a b@x>\0")]),
    "parameters with a control character": TestMilter(edits=[frame(b"2", b"<b@x>\0A=\x01\0")]),
    "too many changes": TestMilter(edits=[frame(b"h", b"X\0y\0")] * 1001),
    "a body without end": TestMilter(edits=[frame(b"b", b"x" * 65_000)] * 60),
    "the end in the middle": TestMilter(stops_at=b"R"),
    "the end after the message": TestMilter(stops_at=b"E"),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_a_broken_milter_counts_as_down_and_changes_nothing(name: str) -> None:
    options = {"max_message_size": 100_000}
    async with door(BROKEN[name], options=options) as (client, kept):
        assert await send(client) == (451, "4.7.1")
        assert (await client.say("NOOP")).code == 250
    assert kept.messages == []


@pytest.mark.parametrize(
    ("when", "expected"),
    [("defer", (451, "4.7.1")), ("refuse", (554, "5.3.0")), ("accept", (250, "2.0.0"))],
)
@pytest.mark.parametrize("stages", [["data"], ["mail", "rcpt"]])
async def test_when_it_is_down_messages_are_deferred_refused_or_accepted(
    when: str, expected: tuple[int, str], stages: list[str],
    tmp_path: Path, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    kept = Collect()
    milter = Milter(f"unix:{tmp_path}/none", when_down=when, stages=stages)  # type: ignore[arg-type]
    async with serve([milter, kept]) as server, await Client.to(server.addresses[0]) as client:
        await client.greet()
        if stages == ["data"] or when == "accept":
            assert await send(client) == expected
        else:
            assert code_and_enhanced(await client.say("MAIL FROM:<a@example.org>")) == expected
    assert len(kept.messages) == (when == "accept")
    records = [each for each in caplog.records if each.name == "smtpd_fork.milter"]
    assert "No such file or directory" in records[0].getMessage()
    assert "none has failed" in records[0].getMessage()
    assert records[0].__dict__["client"].startswith("127.0.0.1:")


async def test_a_milter_that_says_nothing_is_given_up_and_one_that_works_is_waited_for() -> None:
    milter = TestMilter(answers={b"E": b""})
    async with door(milter, timeout=0.05) as (client, kept):
        assert await send(client) == (451, "4.7.1")
        milter.answers = {b"E": frame(b"p") * 3 + frame(b"c")}
        assert await send(client) == (250, "2.0.0")
    assert len(kept.messages) == 1


async def test_a_milter_that_is_at_work_for_ever_is_given_up_in_the_end() -> None:
    async def at_work(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not writer.is_closing():
            writer.write(frame(b"p"))
            await writer.drain()
            await asyncio.sleep(0.01)

    milter = TestMilter(talk=at_work)
    async with door(milter, timeout=0.05, total_timeout=0.3) as (client, _):
        assert await send(client) == (451, "4.7.1")


async def test_a_milter_that_does_not_read_is_given_up() -> None:
    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(frame(b"O", struct.pack(">III", 6, 0x1FF, ALL_SILENT)))
        await asyncio.sleep(0.5)
        writer.transport.abort()

    milter = TestMilter(talk=deaf)
    async with door(milter, timeout=0.1) as (client, _):
        text = "A: b\r\n\r\n" + ("x" * 70 + "\r\n") * 40_000
        assert await send(client, text=text) == (451, "4.7.1")


async def test_a_client_that_is_gone_ends_the_conversation() -> None:
    milter = TestMilter(answers={b"E": b""})
    async with door(milter) as (client, _):
        await client.say("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>", "DATA")
        client.send("x\r\n.\r\n")
        await until(lambda: milter.commands.endswith(b"E"))
        client.writer.transport.abort()
        await asyncio.sleep(0)


async def test_a_header_that_is_too_large_is_refused() -> None:
    async with door(TestMilter()) as (client, kept):
        assert await send(client, text="a:\r\n" * 10_001 + "\r\nx\r\n") == (552, "5.3.4")
        assert await send(client, text="a:\r\n" * 9_999 + "\r\nx\r\n") == (250, "2.0.0")
    assert len(kept.messages) == 1


# -- as the client speaks --------------------------------------------------------------------------


async def test_with_stages_a_milter_refuses_senders_and_recipients_at_once() -> None:
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
        await until(lambda: milter.commands.endswith(b"Q"))
        assert milter.commands == b"CHMRRRTLLLNBEQ"
        assert milter.connections == 1
        milter.answers = {b"M": frame(b"r")}
        assert code_and_enhanced(await client.say("MAIL FROM:<z@example.org>")) == (550, "5.7.1")
        await until(lambda: not milter.open)
    assert kept.messages == [STORED]
    assert kept.envelopes[0].rcpt_tos == ["b@example.com"]


@pytest.mark.parametrize("command", ["RSET", "MAIL", "QUIT"])
async def test_a_transaction_that_ends_ends_its_conversation(command: str) -> None:
    milter = TestMilter()
    async with door(milter, stages=["rcpt"]) as (client, kept):
        await client.say("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>")
        assert milter.open == 1
        if command == "MAIL":
            await client.say("RSET", "MAIL FROM:<c@example.org>", "RCPT TO:<d@example.com>")
            assert milter.data(b"M")[-1] == b"<c@example.org>\0"
            assert milter.open <= 2
            await client.say("DATA")
            client.send("x\r\n.\r\n")
            assert (await client.reply()).code == 250
            assert kept.envelopes[0].mail_from == "c@example.org"
        else:
            await client.say(command)
        await until(lambda: not milter.open)


async def test_a_milter_that_accepts_at_rcpt_is_asked_nothing_more() -> None:
    milter = TestMilter(answers={b"R": frame(b"a")})
    async with door(milter, stages=["rcpt"]) as (client, kept):
        assert await send(client, "b@example.com", "c@example.com") == (250, "2.0.0")
        await until(lambda: not milter.open)
    assert milter.commands in {b"CHMRQ", b"CHMR"}
    assert kept.messages == [STORED]


# -- the rest --------------------------------------------------------------------------------------


async def test_it_never_blocks_the_loop() -> None:
    milter = TestMilter(edits=[frame(b"h", b"X-A\0v\0")])
    async with door(milter, stages=["mail", "rcpt"]) as (client, kept):
        blockbuster = BlockBuster()
        blockbuster.activate()
        try:
            assert await send(client) == (250, "2.0.0")
        finally:
            blockbuster.deactivate()
    assert kept.messages


async def test_who_has_authenticated_is_in_the_macros() -> None:
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
def test_an_address_is_written_as_milters_write_it(text: str, address: str) -> None:
    assert str(parse_milter_address(text)) == address
    entry = f"milter:{text}"
    assert shown_handler(entry) == entry
    assert load_handlers([entry, "discard"]).handlers[0]


@pytest.mark.parametrize(
    "text", ["", "localhost", "mx:example.com", "inet:x@y", "a b:25", "u:p@h:1"]
)
def test_what_is_no_address_is_an_error(text: str) -> None:
    with pytest.raises(SettingError):
        parse_milter_address(text)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({}, "needs address"),
        ({"address": "127.0.0.1:1", "stages": ["connect"]}, "stages"),
        ({"address": "127.0.0.1:1", "when-down": "ignore"}, "when-down"),
        ({"address": "127.0.0.1:1", "whendown": "defer"}, "is when-down meant?"),
    ],
)
def test_a_wrong_key_is_an_error(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(HandlerError, match=words):
        load_handlers([{"use": "milter", **keys}, "discard"])


@pytest.mark.parametrize("stages", [["data"], ["mail", "rcpt"]])
async def test_it_runs_under_aiosmtpd(stages: list[Any]) -> None:
    edits = [frame(b"h", b"X-A\0v\0"), frame(b"+", b"<n@example.net>\0")]
    milter, kept = TestMilter(edits=edits), Collect()
    async with milter_server(milter, tcp=True):
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


def test_without_stages_no_command_waits_for_it() -> None:
    assert Chain([Milter("127.0.0.1:1"), Discard()]).accepts_any_recipient
