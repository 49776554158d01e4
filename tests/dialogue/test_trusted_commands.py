"""XCLIENT and XFORWARD: the hosts that may send them, when, and the attributes."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.cuts import all_cuts
from support.handlers import Keep
from support.offline import Offline, Outcome

from smtpd_fork.dialogue import Shared
from smtpd_fork.dialogue.client_attributes import XCLIENT, XFORWARD, parse_attributes
from smtpd_fork.dialogue.xtext import from_xtext, to_xtext
from smtpd_fork.gate import TrustedHosts
from smtpd_fork.smtp import SMTP

TRUST = TrustedHosts.of("xclient_trust", ["192.0.2.1"])
MAIL, RCPT = "MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>"
NAMED = "XCLIENT ADDR=198.51.100.7 PORT=40312"


class Host(Offline):
    """A connection of a trusted host, or of another one."""

    def __init__(self, shared: Shared, *, trusted: bool = True) -> None:
        super().__init__(shared, ("192.0.2.1" if trusted else "192.0.2.2", 25))
        self.flush()
        self.sent = b""

    def say(self, *commands: str) -> str:
        """Return the reply to the last of several commands."""
        self.sent = b""
        for command in commands:
            self.sent = b""
            self.feed(f"{command}\r\n".encode())
        return self.sent.decode()


def shared_by(handler: Any = None, **options: Any) -> Shared:
    trusted = options.pop("trusted", {"XCLIENT": TRUST, "XFORWARD": TRUST})
    shared = Shared(SMTP, handler or Keep(), hostname="mx.example.com", enhanced=True, **options)
    shared.trust(trusted)
    return shared


class Sessions(Keep):
    """Stores the client of each message, and its original client."""

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.got.append((session.peer, session.host_name, envelope.xforward))
        return "250 2.0.0 Ok"


# -- permission --------------------------------------------------------------------------------


def test_a_trusted_host_is_offered_both_commands_and_no_other_is() -> None:
    shared = shared_by()
    offered = Host(shared).say("EHLO x")
    names = "NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT REVERSE_NAME"
    assert f"250-XCLIENT {names}\r\n" in offered
    assert "250-XFORWARD NAME ADDR PORT PROTO HELO IDENT SOURCE\r\n" in offered
    assert "XCLIENT" not in (other := Host(shared, trusted=False).say("EHLO x"))
    assert "XFORWARD" not in other


@pytest.mark.parametrize("before", [[], ["EHLO x"], ["EHLO x", MAIL], ["EHLO x", MAIL, RCPT]])
@pytest.mark.parametrize("command", [NAMED, "XCLIENT", "XCLIENT nonsense", "XFORWARD NAME=x"])
def test_another_host_may_not_send_them(before: list[str], command: str) -> None:
    host = Host(shared_by(), trusted=False)
    assert host.say(*before, command) == "550 5.7.0 Error: insufficient authorization\r\n"
    assert host.peer == ("192.0.2.2", 25)


@pytest.mark.parametrize("command", ["XCLIENT", "XFORWARD"])
def test_without_a_trusted_host_the_commands_are_unknown(command: str) -> None:
    host = Host(shared_by(trusted={}))
    assert host.say(f"{command} NAME=x").startswith("500 5.5.1")
    assert command not in host.say("HELP")
    assert host.dialogue.errors == 1


def test_help_lists_them_for_trusted_hosts() -> None:
    shared = shared_by()
    assert "XCLIENT XFORWARD" in Host(shared).say("EHLO x", "HELP")
    assert Host(shared).say("EHLO x", "HELP xclient").startswith("250 2.0.0 Syntax: XCLIENT")
    assert "XCLIENT" not in Host(shared, trusted=False).say("EHLO x", "HELP")


# -- sequence ----------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [[], ["HELO x"], ["EHLO x"], ["EHLO x", MAIL, "RSET"]])
def test_xclient_begins_the_session_again_for_the_client(before: list[str]) -> None:
    handler = Sessions()
    host = Host(shared_by(handler))
    greeting = "220 mx.example.com Python SMTP"
    assert host.say(*before, NAMED).startswith(greeting)
    assert host.say(MAIL) == "503 5.5.1 Error: send HELO first\r\n"
    assert host.say("EHLO named.example", MAIL, RCPT, "DATA", "x\r\n.").startswith("250")
    assert host.say("XCLIENT ADDR=IPV6:2001:db8::7").startswith(greeting)
    assert host.say("EHLO other.example", MAIL, RCPT, "DATA", "x\r\n.").startswith("250")
    assert handler.got == [
        (("198.51.100.7", 40312), "named.example", None),
        (("2001:db8::7", 0), "other.example", None),
    ]


@pytest.mark.parametrize("command", [NAMED, "XFORWARD NAME=x"])
@pytest.mark.parametrize("within", [[MAIL], [MAIL, RCPT], [MAIL, RCPT, "BDAT 3\r\nxyz"]])
def test_both_are_rejected_within_a_transaction(within: list[str], command: str) -> None:
    host = Host(shared_by())
    assert host.say("EHLO x", *within[:-1]) != ""
    host.feed(f"{within[-1]}\r\n".encode().replace(b"xyz\r\n", b"xyz"))
    assert host.say(command) == "503 5.5.1 Error: MAIL transaction in progress\r\n"
    assert host.say("RSET", command)[:3] in {"220", "250"}


def test_helo_and_proto_set_the_name_and_protocol_of_the_client() -> None:
    handler = Sessions()
    host = Host(shared_by(handler))
    host.say("XCLIENT ADDR=198.51.100.7 HELO=mail.example PROTO=ESMTP")
    assert host.dialogue.session.extended_smtp
    assert host.say(MAIL, RCPT, "DATA", "x\r\n.").startswith("250")
    assert handler.got[0][1] == "mail.example"
    host.say("XCLIENT ADDR=198.51.100.7")
    assert host.say(MAIL).startswith("503")


def test_a_login_authenticates_and_the_next_client_is_not() -> None:
    host = Host(shared_by(auth_required=True, authenticator=lambda *_: None))
    assert host.say("EHLO x", MAIL).startswith("530")
    assert host.say("XCLIENT ADDR=198.51.100.7 LOGIN=bob+40b.example").startswith("220")
    assert host.say("EHLO x", MAIL).startswith("250")
    session = host.dialogue.session
    assert session.authenticated
    assert (session.auth_data, session.auth_mechanism) == ("bob@b.example", "XCLIENT")
    assert host.say("RSET", "XCLIENT ADDR=198.51.100.8", "EHLO x", MAIL).startswith("530")
    assert host.say("XCLIENT LOGIN=[UNAVAILABLE]", "EHLO x", MAIL).startswith("530")


def test_each_client_has_its_own_limits_of_errors() -> None:
    host = Host(shared_by())
    for _ in range(15):
        assert host.say("NONSENSE").startswith("500")
    assert host.say(NAMED).startswith("220")
    assert host.dialogue.errors == host.dialogue.rejects == 0


def test_the_destination_address_and_the_name_are_stored() -> None:
    host = Host(shared_by())
    host.transport = object()  # type: ignore[assignment] # there is one
    host.say("XCLIENT ADDR=198.51.100.7 NAME=mail.example DESTADDR=192.0.2.25 DESTPORT=587")
    session = host.dialogue.session
    assert (session.local, session.host_name_dns) == (("192.0.2.25", 587), "mail.example")
    for words, name in {
        "LOGIN=bob": "mail.example",
        "NAME=[TEMPUNAVAIL]": None,
        "NAME=other.example": "other.example",
        "ADDR=198.51.100.8": None,
    }.items():
        host.say(f"XCLIENT {words}")
        assert host.dialogue.session.host_name_dns == name, words
    assert host.peer == ("198.51.100.8", 0)


@pytest.mark.parametrize("word", ["ADDR=[UNAVAILABLE]", "addr=[unavailable] PORT=[UNAVAILABLE]"])
def test_a_client_without_an_address_is_like_one_of_a_unix_socket(word: str) -> None:
    host = Host(shared_by())
    assert host.say(f"XCLIENT {word}").startswith("220")
    assert host.dialogue.session.peer == ""


def test_xforward_applies_to_one_message() -> None:
    handler = Sessions()
    host = Host(shared_by(handler))
    ok = "250 2.0.0 OK\r\n"
    host.say("EHLO x")
    assert host.say("XFORWARD NAME=[UNAVAILABLE] ADDR=198.51.100.7 PORT=25") == ok
    assert host.say("XFORWARD HELO=spike+20x IDENT=4F3C SOURCE=REMOTE PORT=[UNAVAILABLE]") == ok
    host.say(MAIL, RCPT, "DATA", "x\r\n.", MAIL, RCPT, "DATA", "x\r\n.")
    first, second = (each[2] for each in handler.got)
    assert first == {
        "ADDR": "198.51.100.7", "HELO": "spike x", "IDENT": "4F3C", "SOURCE": "REMOTE",
    }  # fmt: skip
    assert second is None
    assert handler.got[0][0] == ("192.0.2.1", 25) or not handler.got[0][0]


# -- attributes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ("", "Syntax: XCLIENT attribute=value..."),
        ("ADDR", "Error: attribute=value expected"),
        ("ADDR=", "Error: attribute=value expected"),
        ("=x", "Error: unknown attribute name"),
        ("FOO=bar", "Error: unknown attribute name"),
        ("IDENT=x", "Error: unknown attribute name"),
        ("ADDR=192.0.2.256", "Error: the value of ADDR is malformed"),
        ("ADDR=unix", "Error: the value of ADDR is malformed"),
        ("ADDR=IPV6:fe80::1%eth0", "Error: the value of ADDR is malformed"),
        ("ADDR=192.0.2.1 PORT=65536", "Error: the value of PORT is malformed"),
        ("PORT=-1", "Error: the value of PORT is malformed"),
        ("PORT=+31", "Error: the value of PORT is malformed\r\n"),
        ("PROTO=LMTP", "Error: the value of PROTO is malformed"),
        ("NAME=a+0Ab", "Error: the value of NAME is malformed"),
        ("NAME=a..b", "Error: the value of NAME is malformed"),
        ("HELO=a+0D+0Ab", "Error: the value of HELO is malformed"),
        ("HELO=+", "Error: the value of HELO is malformed"),
        ("HELO=+4G", "Error: the value of HELO is malformed"),
        ("HELO=+FF", "Error: the value of HELO is malformed"),
        (f"HELO={'x' * 256}", "Error: the value of HELO is too long"),
        ("ADDR=192.0.2.9 NAME=x ADDR=y", "Error: the value of ADDR is malformed"),
    ],
)
def test_a_malformed_attribute_is_501_and_changes_nothing(words: str, fault: str) -> None:
    host = Host(shared_by())
    if fault.endswith("\r\n"):  # +31 is the digit 1
        assert host.say(f"XCLIENT {words}").startswith("220")
        return
    assert host.say(f"XCLIENT {words}") == f"501 5.5.4 {fault}\r\n"
    assert host.peer == ("192.0.2.1", 25)
    assert host.dialogue.session.peer is None


def test_the_line_limit_allows_all_attributes_and_no_more() -> None:
    host = Host(shared_by())
    long = "x" * 255
    words = f"ADDR=198.51.100.7 NAME={'a' * 60} HELO={long} LOGIN={long} REVERSE_NAME={'b' * 60}"
    assert host.say(f"XCLIENT {words}").startswith("220")
    assert host.say(f"XCLIENT {' '.join([f'HELO={long}'] * 9)}").startswith("500 5.5.2")
    assert host.say(f"XYZZY {words}").startswith("500 5.5.2")


@given(st.text())
def test_xtext_is_one_word_and_can_be_decoded(text: str) -> None:
    try:
        word = to_xtext(text)
    except UnicodeEncodeError:
        return  # half of a surrogate pair cannot be encoded
    assert word.isascii()
    assert not set(word) & set(" \t\r\n=")
    assert from_xtext(word) == text


@given(st.text(), st.sampled_from([XCLIENT, XFORWARD]))
def test_any_argument_is_parsed_or_rejected(text: str, known: Any) -> None:
    with suppress(ValueError):
        attributes = parse_attributes(text, known)
        assert attributes.keys() <= known.keys()
        assert all(value is None or value.isprintable() for value in attributes.values())


WITH_XCLIENT = [
    "EHLO x", NAMED, "EHLO y", MAIL, NAMED, RCPT, NAMED, "DATA", "x", ".",
    f"{NAMED} HELO=z PROTO=ESMTP", MAIL, RCPT, f"BDAT 3\r\nxyz{NAMED}", "BDAT 0 LAST", "QUIT", "",
]  # fmt: skip
WITH_XFORWARD = [
    "XFORWARD ADDR=198.51.100.9", "EHLO x", "XFORWARD ADDR=198.51.100.7", "XFORWARD HELO=y", MAIL,
    "XFORWARD HELO=z", RCPT, "DATA", "XFORWARD HELO=z", ".", MAIL, RCPT, "DATA", "x", ".", NAMED,
    "XFORWARD HELO=z", "QUIT", "",
]  # fmt: skip


def outcome(shared: Shared, packets: list[bytes]) -> tuple[Outcome, list[Any]]:
    shared.handler.got = []
    host = Host(shared)
    for packet in packets:
        host.feed(packet)
    return host.outcome, shared.handler.got


@pytest.mark.parametrize("commands", [WITH_XCLIENT, WITH_XFORWARD])
def test_every_cut_of_a_stream_gives_the_same(commands: list[str]) -> None:
    shared = shared_by(Sessions())
    stream = "\r\n".join(commands).encode()
    whole = outcome(shared, [stream])
    assert len(whole[1]) == 2
    for packets in all_cuts(stream, near=2):
        assert outcome(shared, packets) == whole, packets
