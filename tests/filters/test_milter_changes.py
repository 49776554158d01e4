"""The changes of a milter: to the message, the sender and the recipients."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from aiosmtpd.smtp import Envelope
from blockbuster import BlockBuster
from support.client import Client
from support.mail import large
from support.milter import TestMilter, changed, frame
from support.milter_door import BODY, HEADER, STORED, door, send
from support.scripted_server import listening
from support.server import serve

from smtpd_fork.filters import Milter
from smtpd_fork.filters.milter_changes import change_envelope
from smtpd_fork.handlers.route import Route
from smtpd_fork.hops.milter.edited import MOST_FIELDS, Parts
from smtpd_fork.hops.milter.verdict import Edit
from smtpd_fork.sinks import Sink

if TYPE_CHECKING:
    from smtpd_fork.message import Mail, Replies

EDITS: dict[str, tuple[list[bytes], bytes]] = {
    "a field is added behind the others": (
        [frame(b"h", b"X-A\0 one\n\ttwo\0")],
        HEADER + b"\r\nX-A: one\r\n\ttwo\r\n\r\n" + BODY,
    ),
    "a field is inserted on top, or at its place": (
        [frame(b"i", changed(0, b"X-A", b" 0")), frame(b"i", changed(3, b"X-B", b" 3"))],
        STORED.replace(b"From:", b"X-A: 0\r\nFrom:").replace(
            b"Subject:  two", b"X-B: 3\r\nSubject:  two"
        ),
    ),
    "a place counts our Received, which the milter is not told of": (
        [frame(b"i", changed(1, b"X-A", b" 1")), frame(b"i", changed(3, b"X-B", b" 3"))],
        STORED.replace(b"From:", b"X-A: 1\r\nFrom:").replace(
            b"Subject:  two", b"X-B: 3\r\nSubject:  two"
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
    "a field with a long name is deleted": (
        [frame(b"h", b"X" * 998 + b"\0 v\0"), frame(b"m", changed(1, b"x" * 998, b""))],
        STORED,
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
async def test_the_milter_can_change_the_message(name: str) -> None:
    edits, expected = EDITS[name]
    milter = TestMilter(edits=edits, protocol=0x100000)
    async with door(milter) as (client, kept):
        assert await send(client) == (250, "2.0.0")
    assert kept.messages == [expected]


async def test_a_later_milter_gets_the_message_with_earlier_changes() -> None:
    second = TestMilter()
    first = TestMilter(
        edits=[
            frame(b"i", changed(0, b"X-A", b"v")),
            frame(b"+", b"<new@example.com>\0"),
            frame(b"e", b"<bounce@example.org>\0"),
            frame(b"b", b"other\r\n"),
        ]
    )
    async with listening(second), door(first, Milter(second.address)) as (client, kept):
        assert await send(client) == (250, "2.0.0")
    assert second.fields[0] == (b"X-A", b"v")
    assert second.body == b"other\r\n"
    assert second.data(b"M") == [b"<bounce@example.org>\0"]
    assert second.data(b"R") == [b"<b@example.com>\0", b"<new@example.com>\0"]
    assert kept.envelopes[0].mail_from == "bounce@example.org"


async def test_two_milters_change_a_large_message_without_blocking_the_event_loop() -> None:
    first, second = (
        TestMilter(edits=[frame(b"i", changed(0, name, b" v"))], protocol=0x100000)
        for name in (b"X-A", b"X-B")
    )
    content = large(25_000_000)
    async with (
        listening(second, tcp=True),
        door(first, Milter(second.address)) as (client, kept),
    ):
        await client.say("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>", "DATA")
        blockbuster = BlockBuster()
        blockbuster.activate()
        try:
            client.writer.write(content + b"\r\n.\r\n")
            assert (await client.reply()).code == 250
        finally:
            blockbuster.deactivate()
    assert second.fields[0] == (b"X-A", b" v")
    assert second.body == content.partition(b"\r\n\r\n")[2] + b"\r\n"
    assert kept.messages == [b"X-B: v\r\nX-A: v\r\n" + content + b"\r\n"]


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
async def test_the_milter_can_change_the_envelope(name: str) -> None:
    edits, sender, recipients = ENVELOPES[name]
    milter = TestMilter(edits=edits)
    async with door(milter) as (client, kept):
        assert await send(client, "b@example.com", "c@example.com") == (250, "2.0.0")
    envelope = kept.envelopes[0]
    assert (envelope.mail_from, envelope.rcpt_tos) == (sender, recipients)
    assert len(envelope.rcpt_params) == len(recipients)


async def test_only_dsn_parameters_of_changed_addresses_are_used() -> None:
    edits = [
        frame(b"2", b"<n@example.net>\0NOTIFY=NEVER ORCPT=rfc822;b@x FOO=bar\0"),
        frame(b"e", b"<x@example.net>\0ENVID=abc SIZE=1\0"),
    ]
    async with door(TestMilter(edits=edits)) as (client, kept):
        assert await send(client) == (250, "2.0.0")
    envelope = kept.envelopes[0]
    assert envelope.rcpt_params == [{}, {"NOTIFY": "NEVER", "ORCPT": "rfc822;b@x"}]
    assert envelope.mail_params == {"ENVID": "abc"}


async def test_a_message_is_discarded_when_no_recipient_is_left() -> None:
    milter = TestMilter(edits=[frame(b"-", b"<b@example.com>\0")])
    async with door(milter) as (client, kept):
        assert await send(client) == (250, "2.0.0")
    assert kept.messages == []


class Takes(Sink):
    """A handler that records recipients, and refuses some of them."""

    def __init__(self, *refused: str) -> None:
        self.refused = refused
        self.taken: list[str] = []

    async def deliver(self, mail: Mail) -> Replies:
        names = [each.address for each in mail.recipients]
        self.taken += names
        return ["550 5.1.1 No" if name in self.refused else "250 2.0.0 Ok" for name in names]


async def test_an_added_recipient_is_routed_to_its_own_sink() -> None:
    one, other = Takes(), Takes()
    milter = TestMilter(edits=[frame(b"+", b"<n@example.net>\0")])
    routes = [Route(one, recipients=["example.com"]), Route(other, recipients=["example.net"])]
    async with listening(milter), serve([Milter(milter.address), *routes]) as server:
        async with await Client.to(server.addresses[0]) as client:
            await client.greet()
            assert await send(client) == (250, "2.0.0")
            milter.edits = [frame(b"+", b"<n@example.org>\0")]
            assert await send(client) == (550, "5.1.1")
    assert (one.taken, other.taken) == (["b@example.com"] * 2, ["n@example.net"])


@pytest.mark.parametrize("refused", [(), ("n@example.net",)])
async def test_in_lmtp_all_recipients_get_the_worst_reply_after_changes(
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
        listening(milter),
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


async def test_all_fields_of_a_client_can_be_deleted_and_the_body_be_replaced_in_pieces() -> None:
    deletions = [frame(b"m", changed(each, b"X-Spam", b"")) for each in range(5000, 0, -1)]
    pieces = [frame(b"b", b"%d\r\n" % number) for number in range(2000)]
    milter = TestMilter(edits=[*deletions, *pieces, frame(b"h", b"X-A\0 b\0")], protocol=0x100000)
    async with door(milter) as (client, kept):
        assert await send(client, text="X-Spam: no\r\n" * 5000 + "\r\nx\r\n") == (250, "2.0.0")
    body = b"".join(b"%d\r\n" % number for number in range(2000))
    assert kept.messages == [b"X-A: b\r\n\r\n" + body]


def test_as_many_changes_as_fields_and_recipients_take_linear_time() -> None:
    number = 30_000
    envelope = Envelope()
    envelope.rcpt_tos = [f"{each}@example.com" for each in range(number)]
    edits = [Edit(b"-", address=address) for address in envelope.rcpt_tos]
    edits += [Edit(b"+", address=f"{each}@example.net") for each in range(number)]
    change_envelope(envelope, edits)
    assert envelope.rcpt_tos == [edit.address for edit in edits[number:]]
    parts = Parts(b"A:\r\n" * MOST_FIELDS)
    deleted = [Edit(b"m", MOST_FIELDS - each % MOST_FIELDS, b"A") for each in range(number)]
    changed = [Edit(b"m", 1, b"B", b"%d" % each) for each in range(number)]
    made = parts.edited([*deleted, *changed], leading_space=False)
    assert made == b"B: %d\r\n" % (number - 1)
