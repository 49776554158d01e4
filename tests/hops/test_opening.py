"""Opening: EHLO, STARTTLS and AUTH on the client's side, without a socket; and garbage."""

from __future__ import annotations

from base64 import b64encode

import pytest
from support.hop_client import Wire

from smtpd_fork.hops.client import State
from smtpd_fork.hops.replies import LONGEST_LINE, LONGEST_REPLY, MOST_LINES


def test_the_opening_is_a_greeting_and_ehlo() -> None:
    wire = Wire()
    assert wire.take() == b""
    assert wire.say("220 hop") == b"EHLO me.example\r\n"
    assert wire.say("250-hop\r\n250-SIZE 1000\r\n250 PIPELINING") == b""
    assert wire.client.state is State.READY
    assert wire.client.offered == {"SIZE": "1000", "PIPELINING": ""}


def test_helo_is_sent_if_ehlo_is_refused() -> None:
    wire = Wire()
    wire.say("220 hop")
    assert wire.say("502 What?") == b"HELO me.example\r\n"
    wire.say("250 hop")
    assert wire.client.state is State.READY


def test_lmtp_sends_only_lhlo() -> None:
    wire = Wire(lmtp=True)
    assert wire.say("220 hop") == b"LHLO me.example\r\n"
    wire.say("502 What?")
    assert wire.client.state is State.BROKEN


def test_data_after_the_reply_to_starttls_is_an_error() -> None:
    wire = Wire(starttls="required")
    wire.say("220 hop")
    assert wire.say("250-hop\r\n250 STARTTLS") == b"STARTTLS\r\n"
    wire.client.receive(b"220 Go\r\n250 injected")
    assert wire.client.state is State.BROKEN


def test_after_tls_ehlo_is_sent_again_and_earlier_extensions_are_forgotten() -> None:
    wire = Wire(starttls="required")
    wire.say("220 hop")
    wire.say("250-hop\r\n250-AUTH PLAIN\r\n250 STARTTLS")
    assert wire.say("220 Go") == b""
    assert wire.client.state is State.HANDSHAKE
    wire.client.encrypted()
    assert wire.take() == b"EHLO me.example\r\n"
    wire.say("250-hop\r\n250 PIPELINING")
    assert wire.client.offered == {"PIPELINING": ""}


@pytest.mark.parametrize(
    ("wanted", "replies", "state"),
    [
        ("required", ["250 hop"], State.BROKEN),
        ("required", ["250-hop\r\n250 STARTTLS", "454 Not now"], State.BROKEN),
        ("offered", ["250-hop\r\n250 STARTTLS", "454 Not now"], State.READY),
        ("offered", ["250 hop"], State.READY),
    ],
)
def test_plaintext_is_used_only_if_tls_is_not_required(
    wanted: str, replies: list[str], state: State
) -> None:
    wire = Wire(starttls=wanted)
    wire.say("220 hop")
    for reply in replies:
        wire.say(reply)
    assert wire.client.state is state


def test_auth_plain_is_one_line() -> None:
    wire = Wire(user="u", password="p")
    wire.say("220 hop")
    plain = b64encode(b"\0u\0p")
    assert wire.say("250-hop\r\n250 AUTH LOGIN PLAIN") == b"AUTH PLAIN " + plain + b"\r\n"
    wire.say("235 Yes")
    assert wire.client.state is State.READY


def test_auth_login_sends_name_and_password_separately() -> None:
    wire = Wire(user="u", password="p")
    wire.say("220 hop")
    assert wire.say("250-hop\r\n250 AUTH LOGIN") == b"AUTH LOGIN\r\n"
    assert wire.say("334 VXNlcm5hbWU6") == b64encode(b"u") + b"\r\n"
    assert wire.say("334 UGFzc3dvcmQ6") == b64encode(b"p") + b"\r\n"
    wire.say("334 more?")
    assert wire.client.state is State.BROKEN


def test_a_password_in_a_reply_is_not_shown() -> None:
    wire = Wire(user="u", password="secret")
    wire.say("220 hop")
    said = wire.say("250-hop\r\n250 AUTH PLAIN").split()[2].decode()
    wire.say(f"535 5.7.8 secret is wrong, as is {said}")
    assert wire.client.fault is not None
    assert "535" in wire.client.fault.reason
    assert "secret" not in wire.client.fault.reason
    assert said not in wire.client.fault.reason
    assert wire.client.fault.reply.startswith("451 4.7.0 ")


@pytest.mark.parametrize("echo", ["500 What is {}?", "{}: unknown", "250 {}", "334 {}", "421 {}"])
@pytest.mark.parametrize("before", [[], ["235 ok"], ["235 ok", "250 sender"]])
def test_a_password_in_any_later_reply_is_not_shown(echo: str, before: list[str]) -> None:
    password = "correct-horse" * 9  # longer than the part of garbage in the error
    wire = Wire(user="u", password=password)
    wire.say("220 hop")
    wire.say("250-hop\r\n250 AUTH PLAIN")
    for reply in before:
        wire.say(reply)
        if wire.client.state is State.READY:
            wire.send()
            wire.take()
    said = b64encode(f"\0u\0{password}".encode()).decode()
    wire.say(echo.format(f"AUTH PLAIN {said} ({password})"), "250 and more", "250 and more")
    assert wire.client.fault is not None
    assert "correct" not in wire.client.fault.reason
    assert said[:20] not in wire.client.fault.reason


@pytest.mark.parametrize(
    "stream",
    [
        b"x" * LONGEST_LINE,
        b"250-" + b"x" * LONGEST_LINE,
        b"250-x\r\n" * (MOST_LINES + 1),
        (b"250-" + b"x" * 2000 + b"\r\n") * (LONGEST_REPLY // 2000 + 1),
        b"250-x\r\n251 x\r\n",
        b"hello\r\n",
        b"150 x\r\n",
        b"600 x\r\n",
        b"25\r\n",
        b"250x\r\n",
        b"250 a\rb\r\n",
        b"\r\n",
        b"\xff\xfe\r\n",
    ],
)
def test_garbage_breaks_the_connection(stream: bytes) -> None:
    wire = Wire()
    wire.client.receive(stream)
    assert wire.client.state is State.BROKEN
    assert wire.client.fault is not None
    assert wire.client.fault.reply.startswith("451 ")


def test_an_endless_line_is_limited() -> None:
    wire = Wire()
    for _ in range(1000):
        wire.client.receive(b"x" * 1000)
    assert len(wire.client._reader._rest) <= LONGEST_LINE + 1000
