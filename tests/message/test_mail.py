"""Mail: a sink gets the data that the client has sent."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.client import Client
from support.server import serve

from smtpd_fork import MISSING, Mail, Recipient, Sink, prepend
from smtpd_fork.message.results import combined, per_recipient
from smtpd_fork.testing import MESSAGES, make_mail


class Keeps(Sink):
    supports_dsn = supports_binarymime = True

    def __init__(self) -> None:
        self.mails: list[Mail] = []

    async def deliver(self, mail: Mail) -> str:
        self.mails.append(mail)
        return f"250 2.0.0 Ok: {mail.id}"


async def test_a_mail_has_all_data_of_the_client() -> None:
    sink = Keeps()
    async with serve(sink) as server, await Client.to(server.addresses[0]) as client:
        await client.greet("me.example")
        await client.say("MAIL FROM:<a@example.org> BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=aBc")
        await client.say("RCPT TO:<b@example.com> NOTIFY=NEVER", "RCPT TO:<C@Example.com>", "DATA")
        client.send(b"Subject: x\r\n\r\n..\xfc\r\n.\r\n")
        reply = await client.reply()
    [mail] = sink.mails
    assert reply.lines == [f"2.0.0 Ok: {mail.id}"]
    assert (mail.sender, mail.body, mail.utf8) == ("a@example.org", "8BITMIME", True)
    assert (mail.parameters["RET"], mail.parameters["ENVID"]) == ("HDRS", "aBc")
    assert mail.recipients == (
        Recipient("b@example.com", {"NOTIFY": "NEVER"}),
        Recipient("C@Example.com", {}),
    )
    assert mail.content == b"Subject: x\r\n\r\n.\xfc\r\n"
    assert (mail.client.helo, mail.client.tls, mail.client.login) == ("me.example", False, None)
    assert mail.received.tzinfo is not None
    head, rest = mail.relayed()
    assert head.startswith(b"Received: from me.example ([127.0.0.1])\r\n\tby mx.example.com ")
    assert b" for <" not in head  # it would disclose one recipient to the other
    assert rest == mail.content
    head, rest = mail.delivered([mail.recipients[1]])
    assert head.startswith(b"Return-Path: <a@example.org>\r\nDelivered-To: C@Example.com\r\nRec")


async def test_the_null_sender_is_empty_and_a_message_sent_again_has_the_same_key() -> None:
    sink = Keeps()
    async with serve(sink) as server:
        for to in ("b@x.example", "b@x.example", "c@x.example"):
            async with await Client.to(server.addresses[0]) as client:
                await client.greet()
                await client.say("MAIL FROM:<>", f"RCPT TO:<{to}>", "DATA")
                client.send("hello\r\n.\r\n")
                assert (await client.reply()).code == 250
    one, again, other = sink.mails
    assert one.sender == ""
    assert one.key == again.key != other.key
    assert len({each.id for each in sink.mails}) == 3


class Stamps:
    """A filter that adds another field each time."""

    count = 0

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> Any:
        self.count += 1
        prepend(envelope, "X-Count", str(self.count))
        return MISSING


async def test_a_field_that_a_filter_adds_does_not_change_the_key() -> None:
    sink = Keeps()
    async with serve([Stamps(), Stamps(), sink]) as server:
        async with await Client.to(server.addresses[0]) as client:
            await client.greet()
            for body in ("hello", "hello", "other"):
                assert (await client.deliver(f"Subject: x\r\n\r\n{body}\r\n")).code == 250
    one, again, other = sink.mails
    assert one.key == again.key != other.key
    assert one.content != again.content
    plain = make_mail(
        b"Subject: x\r\n\r\nhello\r\n",
        sender=one.sender,
        recipients=[each.address for each in one.recipients],
    )
    assert plain.key == one.key


def test_a_part_of_a_mail_keeps_id_key_and_trace() -> None:
    mail = make_mail(recipients=["a@x.example", "b@x.example"])
    part = mail.to([mail.recipients[1]])
    assert (part.id, part.key, part.trace) == (mail.id, mail.key, mail.trace)
    assert [each.address for each in part.recipients] == ["b@x.example"]
    assert mail.to(mail.recipients) is mail
    with pytest.raises(dataclasses.FrozenInstanceError):
        mail.sender = "x"  # type: ignore[misc]


def test_the_key_depends_on_the_number_of_recipients_but_not_on_their_order() -> None:
    keys = [
        make_mail(recipients=to).key
        for to in (["a", "b"], ["b", "a"], ["a"], ["a", "a"], ["a\0b"], ["ab"])
    ]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 5


def test_secrets_and_contents_are_not_in_the_representation() -> None:
    assert "hello" not in repr(make_mail(MESSAGES["plain"]))


codes = st.sampled_from(
    ["250 ok", "451 4.2.0 later", "452 full", "550 5.1.1 no", "554 5.7.1 never"]
)


@given(st.lists(codes, min_size=1, max_size=8))
def test_one_reply_for_several_recipients_never_hides_a_failure(replies: list[str]) -> None:
    recipients = [Recipient(f"u{number}@x.example") for number in range(len(replies))]
    reply = combined(replies, recipients)
    digits = {each[0] for each in replies}
    assert reply[0] == ("4" if "4" in digits else "5" if "5" in digits else "2")
    if reply[0] == "5" and len(replies) > 1:
        assert "u" in reply.partition("(for ")[2]


@pytest.mark.parametrize("replies", [[], ["250 a"], ["250 a"] * 3, 3, None])
def test_a_wrong_number_of_replies_is_an_error(replies: Any) -> None:
    with pytest.raises(TypeError):
        per_recipient(replies, 2)


def test_ids_differ_from_those_of_the_previous_process_under_aiosmtpd() -> None:
    """Its sessions have no id, and a sink may name files by the id of the message."""
    program = (
        "from types import SimpleNamespace as N\n"
        "from aiosmtpd.smtp import Envelope, Session\n"
        "import asyncio\n"
        "from smtpd_fork import Mail\n"
        "session = Session(asyncio.new_event_loop())\n"
        "session.peer = ('127.0.0.1', 1)\n"
        "print(Mail.of(N(hostname='mx.example.com'), session, Envelope()).id)\n"
    )
    ids = {
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    }
    assert len(ids) == 2
