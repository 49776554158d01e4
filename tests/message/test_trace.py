"""Trace fields at the top of a message, whatever name a client has sent."""

from __future__ import annotations

import re
import tracemalloc
from datetime import UTC, datetime
from email import message_from_bytes, policy
from email.utils import parseaddr, parsedate_to_datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from support.client import Client
from support.daemon import messages
from support.handlers import a_session, an_envelope
from support.server import serve

from smtpd_fork.dialogue.path import parse_path
from smtpd_fork.message import Mail
from smtpd_fork.message.trace import above, final_fields, protocol_name, received_field
from smtpd_fork.sinks import Maildir

if TYPE_CHECKING:
    from pathlib import Path


def trace_headers(host: str, session: Any, envelope: Any, queue_id: str, now: datetime) -> bytes:
    """Return the fields that a Maildir writes at the top of a message."""
    received = received_field(host, session, envelope, queue_id, now)
    sender = Mail.of(SimpleNamespace(hostname=host), session, envelope).sender
    return (final_fields(sender, envelope.rcpt_tos) + received).replace(b"\r\n", b"\n")


NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)

TLS = {"ssl": {"cipher": None}}
LOGIN = {"authenticated": True}


@pytest.mark.parametrize(
    ("facts", "name", "with_utf8"),
    [
        ({"extended_smtp": False}, "SMTP", "SMTP"),
        ({}, "ESMTP", "UTF8SMTP"),
        (TLS, "ESMTPS", "UTF8SMTPS"),
        (LOGIN, "ESMTPA", "UTF8SMTPA"),
        (TLS | LOGIN, "ESMTPSA", "UTF8SMTPSA"),
        ({"lmtp": True}, "LMTP", "UTF8LMTP"),
        ({"lmtp": True} | TLS, "LMTPS", "UTF8LMTPS"),
        ({"lmtp": True} | LOGIN, "LMTPA", "UTF8LMTPA"),
        ({"lmtp": True} | TLS | LOGIN, "LMTPSA", "UTF8LMTPSA"),
    ],
)
def test_the_protocol_has_its_registered_name(
    facts: dict[str, Any], name: str, with_utf8: str
) -> None:
    """RFC 3848, and RFC 6531 4.3 for a message with SMTPUTF8."""
    session = a_session(**facts)
    assert protocol_name(session, an_envelope("a@b")) == name
    assert protocol_name(session, an_envelope("a@b", utf8=True)) == with_utf8


def test_the_null_sender_is_an_empty_return_path() -> None:
    head = trace_headers("mx", a_session(), an_envelope("<>", "b@c"), "q", NOW)
    assert head.startswith(b"Return-Path: <>\n")


def test_received_does_not_disclose_several_recipients() -> None:
    head = trace_headers("mx", a_session(), an_envelope("a@b", "c@d", "e@f"), "q", NOW).decode()
    assert "Delivered-To: c@d\nDelivered-To: e@f\n" in head
    assert "for <" not in head


def test_an_ipv6_client_is_a_literal_of_rfc_5321() -> None:
    session = a_session(peer=("2001:db8::1", 4025, 0, 0), host_name="x")
    assert b"from x ([IPv6:2001:db8::1])" in trace_headers(
        "mx", session, an_envelope("a"), "q", NOW
    )


RECEIVED = re.compile(
    r"from ([^ ()<>\\\",;@=]+) \((?:\[([^ ()<>\\\",;@=]+)\]|local socket)\) "
    r"by mx \(smtpd-fork\) with [A-Z0-9]+ id q(?: for <(.*)>)?; ([^;]+)",
    re.DOTALL,
)
NAMES = st.one_of(
    st.text(max_size=300),
    st.text('"\\\\()<>;,@=?[]:. ax\n\r\t\0\x85\u2028\ud800é', max_size=20),
    st.sampled_from(['"', 'a"b', "x;", "(", "a)b", "=?utf-8?q?=0A?=", "[1.2.3.4]", "\\xe9t\\xe9"]),
)
LOCAL_PARTS = st.one_of(
    st.from_regex(r'"([^"\\]|\\[ -~])*"', fullmatch=True),
    st.text(max_size=20),
    st.sampled_from(['"a>b"', '"<"', '"; x"', '" "', '"a@b"', '"\\""', "=?utf-8?q?=0A?="]),
)


def checked(head: bytes, name: str, sender: str, to: str) -> None:
    """Check the header with Python's own parser."""
    message = message_from_bytes(head + b"Subject: after\n\nbody\n")
    assert message.keys() == ["Return-Path", "Delivered-To", "Received", "Subject"]
    assert not message.defects
    assert message.get_payload() == "body\n"
    # The number of lines is the same by any definition of a line.
    lines = head.decode().splitlines()
    assert len(lines) == head.count(b"\n")
    assert all(re.match(r"[A-Z][A-Za-z-]+: |\t", line) for line in lines)
    fields = dict(field.split(": ", 1) for field in re.split(r"\n(?!\t)", head.decode())[:-1])
    assert fields["Return-Path"] == f"<{sender}>"
    assert fields["Delivered-To"] == to
    assert parseaddr(fields["Return-Path"])[1] == sender.replace('""@', "@") or '"' in sender
    received = RECEIVED.fullmatch(fields["Received"].replace("\n\t", " "))
    assert received is not None, fields["Received"]
    assert len(received[1]) == len(name[:255])
    assert received[3] == to
    assert parsedate_to_datetime(received[4]) == NOW
    new_way = message_from_bytes(head + b"\n", policy=policy.default)
    assert new_way.keys() == ["Return-Path", "Delivered-To", "Received"]


@given(name=NAMES, sender=LOCAL_PARTS, to=LOCAL_PARTS, host=NAMES, utf8=st.booleans())
@example(name='a"b', sender='"a>b"', to='"c;d"', host="192.0.2.1", utf8=False)
@example(name="x;", sender='"a\\"b"', to='"\\\\"', host="::1", utf8=False)
def test_the_header_keeps_its_structure_whatever_a_client_sends(
    name: str, sender: str, to: str, host: str, utf8: bool
) -> None:
    sender, to = f"{sender}@example.org", f"{to}@example.com"
    for address in (sender, to):  # the addresses that a session accepts
        assume(parse_path(f"<{address}>") == (address, ""))
        assume(utf8 or address.isascii())
    session = a_session(host_name=name, peer=(host, 25))
    head = trace_headers("mx", session, an_envelope(sender, to, utf8=utf8), "q", NOW)
    assert utf8 or head.isascii()
    checked(head, name or "unknown", sender, to)


@given(st.text(max_size=300), st.text(max_size=300), st.text(max_size=300))
def test_no_text_of_a_handler_adds_a_header_field(helo: str, sender: str, to: str) -> None:
    """A handler may set values in session and envelope that no client can send."""
    head = trace_headers("mx", a_session(host_name=helo), an_envelope(sender, to), "q", NOW)
    lines = head.decode().split("\n")
    assert [line[:13] for line in lines[:2]] == ["Return-Path: ", "Delivered-To:"]
    assert lines[2].startswith("Received: from ")
    assert all(line.startswith("\t") for line in lines[3:-1])
    assert lines[-1] == ""
    assert not re.search(rb"[\r\0]", head)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b'"', "?"),
        (b'a"b', "a?b"),
        (b"x;", "x?"),
        (b"a(b", "a?b"),
        (b"[127.0.0.1]", "[127.0.0.1]"),
        (b"[IPv6:::1]", "[IPv6:::1]"),
        (b"caf\xe9", "caf?xe9"),
        ("café".encode(), "caf?"),
        (b"two words", "two?words"),
    ],
)
async def test_a_stored_message_has_the_unchanged_sender_and_a_harmless_name(
    name: bytes, shown: str, tmp_path: Path
) -> None:
    sender = '"a>b"@example.org'
    async with serve(Maildir(tmp_path)) as server:
        async with await Client.to(server.addresses[0]) as client:
            await client.reply()
            client.send(b"EHLO " + name + b"\r\n")
            assert (await client.reply()).code == 250
            assert (await client.say(f"MAIL FROM:<{sender}>")).code == 250
            await client.say("RCPT TO:<b@example.com>", "DATA")
            client.send("Subject: x\r\n\r\nx\r\n.\r\n")
            assert (await client.reply()).code == 250
    (text,) = messages(tmp_path)
    assert text.startswith(f"Return-Path: <{sender}>\n")
    assert f"\nReceived: from {shown} ([127.0.0.1])\n" in text


@pytest.mark.parametrize("header", [b"Subject: x\r\n\r\n", b""])
def test_many_mbox_lines_are_text_and_are_not_parsed(header: bytes) -> None:
    content = b"From x\r\n" * 100_000 + header
    tracemalloc.start()
    try:
        head, rest = above(b"A: b\r\n", content)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert head == b"A: b\r\n\r\n"
    assert rest is content
    assert peak < 0.1 * len(content)
