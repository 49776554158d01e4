"""XCLIENT and XFORWARD on the client's side of SMTP."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.hop_client import MAIL, RCPTS, Wire
from support.mail import a_mail

from smtpd_fork.dialogue.client_attributes import XCLIENT, XFORWARD, parse_attributes
from smtpd_fork.hops.client import Order, State
from smtpd_fork.hops.passed_client import ehlo_name, xclient_command, xforward_commands
from smtpd_fork.message import MailClient

ALL = "NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT"
FORWARDED = "NAME ADDR PORT PROTO HELO IDENT SOURCE"
HOP = f"250-hop\r\n250-PIPELINING\r\n250-XFORWARD {FORWARDED}\r\n250 XCLIENT {ALL}"
CLIENT = MailClient(
    ("192.0.2.7", 40312), "mail.example", "host.example", "bob", protocol="ESMTPSA",
    local=("2001:db8::25", 587, 0, 0),
)  # fmt: skip
COMMAND = (
    b"XCLIENT NAME=host.example ADDR=192.0.2.7 PORT=40312 PROTO=ESMTP HELO=mail.example LOGIN=bob "
    b"DESTADDR=IPV6:2001:db8::25 DESTPORT=587\r\n"
)


def test_xclient_contains_the_known_attributes_of_the_client() -> None:
    assert xclient_command(CLIENT, ALL) == COMMAND
    assert (
        xclient_command(CLIENT, "ADDR NAME FOO") == b"XCLIENT NAME=host.example ADDR=192.0.2.7\r\n"
    )
    assert xclient_command(MailClient(), "ADDR NAME LOGIN PORT HELO") == (
        b"XCLIENT NAME=[UNAVAILABLE] ADDR=[UNAVAILABLE] PORT=[UNAVAILABLE] HELO=[UNAVAILABLE] "
        b"LOGIN=[UNAVAILABLE]\r\n"
    )


def test_the_path_of_a_unix_socket_is_not_sent_as_an_address() -> None:
    came = MailClient(("192.0.2.7", 40312), local="/run/front.sock")
    assert xclient_command(came, "ADDR DESTADDR DESTPORT") == (
        b"XCLIENT ADDR=192.0.2.7 DESTADDR=[UNAVAILABLE] DESTPORT=[UNAVAILABLE]\r\n"
    )


def test_xforward_describes_the_origin_of_the_message() -> None:
    assert xforward_commands(a_mail(client=CLIENT), FORWARDED) == [
        b"XFORWARD NAME=host.example ADDR=192.0.2.7 PORT=40312\r\n",
        b"XFORWARD PROTO=ESMTP HELO=mail.example IDENT=77-1-1 SOURCE=REMOTE\r\n",
    ]
    assert xforward_commands(a_mail(client=MailClient()), "ADDR SOURCE") == [
        b"XFORWARD ADDR=[UNAVAILABLE]\r\n",
        b"XFORWARD SOURCE=LOCAL\r\n",
    ]


def test_the_xforward_of_a_trusted_host_is_passed_on() -> None:
    origin = {"ADDR": "2001:db8::7", "NAME": "a.example", "IDENT": "4F3C", "SOURCE": "LOCAL"}
    assert xforward_commands(a_mail(client=CLIENT, xforward=origin), FORWARDED) == [
        b"XFORWARD NAME=a.example ADDR=IPV6:2001:db8::7 PORT=[UNAVAILABLE]\r\n",
        b"XFORWARD PROTO=[UNAVAILABLE] HELO=[UNAVAILABLE] IDENT=4F3C SOURCE=LOCAL\r\n",
    ]


@given(st.text(), st.text(), st.text())
def test_a_client_cannot_inject_an_attribute(helo: str, name: str, login: str) -> None:
    client = MailClient(("192.0.2.7", 1), helo, name, login)
    for command, known in [
        (xclient_command(client, ALL), XCLIENT),
        *((each, XFORWARD) for each in xforward_commands(a_mail(client=client), FORWARDED)),
    ]:
        text = command.decode("ascii")
        assert text.endswith("\r\n")
        assert "\r" not in text[:-2]
        assert "\n" not in text[:-2]
        assert len(text) < 2048
        if (helo + name + login).isprintable():  # otherwise a server refuses the value
            assert parse_attributes(text.partition(" ")[2], known)
    assert " " not in ehlo_name(client, "me.example")
    assert ehlo_name(client, "me.example").isascii()


def test_ehlo_has_the_name_of_the_client_or_its_address() -> None:
    assert ehlo_name(CLIENT, "me.example") == "mail.example"
    assert ehlo_name(MailClient(("192.0.2.7", 1), "two words"), "me.example") == "[192.0.2.7]"
    assert ehlo_name(MailClient(("2001:db8::7", 1)), "me.example") == "[IPv6:2001:db8::7]"
    assert ehlo_name(MailClient(), "me.example") == "me.example"


# -- the session -------------------------------------------------------------------------------


def named(wire: Wire, client: MailClient = CLIENT, ehlo: str = HOP) -> Wire:
    wire.client.set_client(client)
    wire.take()
    wire.say("220 hop")
    wire.say(ehlo)
    return wire


def test_xclient_and_ehlo_are_sent_before_the_transaction() -> None:
    wire = Wire(xclient=True).ready(HOP)
    wire.client.set_client(CLIENT)
    assert wire.take() == COMMAND
    assert wire.say("220 hop") == b"EHLO mail.example\r\n"
    assert wire.say("250 hop") == b""
    assert wire.client.state is State.READY
    wire.send()
    assert wire.take() == MAIL  # no PIPELINING for this client


def test_xclient_is_sent_again_only_for_another_client() -> None:
    wire = named(Wire(xclient=True).ready(HOP))
    wire.client.set_client(CLIENT)
    assert (wire.take(), wire.client.state) == (b"", State.READY)
    wire.client.set_client(MailClient(("192.0.2.8", 1), "mail.example"))
    assert b" ADDR=192.0.2.8 " in wire.take()
    wire.say("220 hop")
    wire.say(HOP)
    assert wire.client.state is State.READY


def test_a_hop_without_xclient_is_not_used() -> None:
    wire = Wire(xclient=True)
    wire.say("220 hop")
    wire.say("250-hop\r\n250 PIPELINING")
    assert wire.client.state is State.BROKEN
    assert str(wire.client.fault) == "the hop does not offer XCLIENT to this host"


def test_a_connection_that_refuses_another_client_is_closed() -> None:
    wire = named(Wire(xclient=True).ready(HOP), ehlo="250 hop")
    wire.client.set_client(MailClient(("192.0.2.8", 1)))
    assert (wire.take(), wire.client.state) == (b"", State.BROKEN)
    assert not wire.client.has_answered


@pytest.mark.parametrize(
    ("replies", "answer"),
    [
        (["554 5.7.1 No"], "554 5.7.1 No"),
        (["550 5.7.0 Not you"], "451 4.7.0 The next mail server is not available, try again later"),
        (["501 5.5.4 Bad"], "451 4.7.0 The next mail server is not available, try again later"),
        (["450 4.7.1 Later"], "450 4.7.1 Later"),
        (["421 4.7.0 Too many connections"], "451 4.7.0 Too many connections"),
        (["220 hop", "504 5.5.2 Bad name", "504 5.5.2 Bad name"], "504 5.5.2 Bad name"),
    ],
)
def test_a_refusal_of_the_client_is_passed_on_to_it(replies: list[str], answer: str) -> None:
    wire = Wire(xclient=True).ready(HOP)
    wire.client.set_client(CLIENT)
    wire.take()
    for reply in replies:
        wire.say(reply)
    assert wire.client.state is State.BROKEN
    assert wire.client.fault is not None
    assert wire.client.fault.reply == answer


def send(wire: Wire, *, content: bytes | None = b"text\r\n.\r\n") -> Order:
    pieces = None if content is None else iter([content])
    order = Order(MAIL, RCPTS, pieces, origin=[b"XFORWARD NAME=x\r\n", b"XFORWARD HELO=y\r\n"])
    wire.client.begin(order)
    return order


BOTH = b"XFORWARD NAME=x\r\nXFORWARD HELO=y\r\n"


@pytest.mark.parametrize("reply", ["250 OK", "550 5.7.0 No", "501 5.5.4 Bad"])
def test_xforward_is_sent_before_mail_and_its_reply_is_ignored(reply: str) -> None:
    wire = Wire().ready(HOP)
    send(wire)
    assert wire.take() == BOTH + MAIL + b"".join(RCPTS) + b"DATA\r\n"
    replies = (reply, "250 OK", "250 OK", "550 No", "250 OK", "354 Go")
    assert wire.say(*replies) == b"text\r\n.\r\n"
    wire.say("250 taken")
    assert wire.codes() == [550, 250]


def test_without_pipelining_each_xforward_waits_for_its_reply() -> None:
    wire = Wire().ready("250-hop\r\n250 XFORWARD NAME HELO")
    send(wire)
    sent = [wire.take()]
    sent += [wire.say("250 OK") for _ in range(5)]
    assert sent == [*BOTH.splitlines(keepends=True), MAIL, *RCPTS, b"DATA\r\n"]
    assert wire.say("354 Go") == b"text\r\n.\r\n"


@given(st.lists(st.integers(0, 200), max_size=6))
def test_the_result_does_not_depend_on_how_replies_are_split(cuts: list[int]) -> None:
    wire = Wire().ready(HOP)
    send(wire)
    wire.take()
    replies = ("250 OK", "250 OK", "250 OK", "250 OK", "550 No", "354 Go")
    assert wire.say(*replies, cuts=tuple(cuts)) == b"text\r\n.\r\n"
    wire.say("250 taken", cuts=tuple(cuts))
    assert wire.codes() == [250, 550]


def test_a_hop_that_closes_at_xforward_has_not_answered_the_message() -> None:
    wire = Wire().ready(HOP)
    send(wire)
    wire.take()
    wire.say("421 4.3.2 Closing")
    assert wire.client.state is State.BROKEN
    assert not wire.client.has_answered
