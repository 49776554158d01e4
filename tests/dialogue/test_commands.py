"""The dialogue behaves as the table of commands says: each command, in each state."""

from __future__ import annotations

import ssl
from typing import Any

import pytest
from support.handlers import Keep, check_password
from support.offline import Offline

from smtpd_fork.dialogue import CurrentTls, Shared
from smtpd_fork.dialogue.commands import COMMANDS, TAKES_COMMANDS, Command, State
from smtpd_fork.dialogue.trusted_commands import NAMES
from smtpd_fork.gate import TrustedHosts
from smtpd_fork.smtp import SMTP

LEADS = {
    State.HELLO: b"",
    State.READY: b"%b x\r\n",
    State.SENDER: b"%b x\r\nMAIL FROM:<a@b.example>\r\n",
    State.RECIPIENT: b"%b x\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\n",
    State.CHUNKS: b"%b x\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nBDAT 1\r\nx",
    State.BARRED: b"%b x\r\n",
}
"""The input that leads to a state."""

LINES = {
    "AUTH": b"AUTH PLAIN",
    "BDAT": b"BDAT 3",
    "EHLO": b"EHLO x",
    "HELO": b"HELO x",
    "LHLO": b"LHLO x",
    "MAIL": b"MAIL FROM:<e@f.example>",
    "RCPT": b"RCPT TO:<g@h.example>",
    "VRFY": b"VRFY <a@b.example>",
    "XCLIENT": b"XCLIENT ADDR=192.0.2.7",
    "XFORWARD": b"XFORWARD ADDR=192.0.2.7",
}
"""Commands with a valid argument; others have none."""

NEVER = {"EXPN", "ETRN", "TURN"}
"""Commands that are rejected in any state."""


def shared(*, lmtp: bool | None = False, **more: Any) -> Shared:
    common = Shared(
        SMTP,
        Keep(),
        hostname="mx.example.com",
        lmtp=bool(lmtp),
        tls=CurrentTls(ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)),
        authenticator=check_password,
        auth_require_tls=False,
        **more,
    )
    common.trust(dict.fromkeys(NAMES, TrustedHosts.of("xclient_trust", ["192.0.2.1"])))
    return common


def led_to(state: State, common: Shared) -> Offline:
    """Return a dialogue in *state*."""
    offline = Offline(common)
    lead = LEADS[state]
    offline.feed(lead % (b"LHLO" if common.lmtp else b"EHLO") if lead else b"")
    if state is State.BARRED:
        offline.dialogue.state = state
    assert offline.dialogue.state == state
    offline.sent = b""
    return offline


@pytest.mark.parametrize("fast", [True, False], ids=["fast path", "general path"])
@pytest.mark.parametrize("state", TAKES_COMMANDS)
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_a_command_behaves_as_its_row_says(command: Command, state: State, fast: bool) -> None:
    offline = led_to(state, shared(lmtp=command.lmtp))
    dialogue = offline.dialogue
    dialogue.fast &= fast
    dialogue.receive(LINES.get(command.name, command.name.encode()) + b"\r\n")
    if command.name == "XCLIENT":  # the host completes the change of state
        offline._carry_on()
    reply = dialogue.out.decode()
    refused = command.otherwise.get(state) or command.late.get(state)
    if state is State.BARRED and command.name != "QUIT":
        assert reply == "554 Command refused due to lack of security\r\n"
        assert dialogue.state == state
    elif refused is not None:
        code, _, words = refused
        assert reply == f"{code} {words}\r\n"
        assert dialogue.state == state
    else:
        assert reply[:1] in {"", "2", "3"} or command.name in NEVER
        expected = state if command.leads_to is None else command.leads_to
        if command.name == "RSET" and state is State.HELLO:
            expected = state
        assert dialogue.state == expected


@pytest.mark.parametrize("name", sorted(NEVER))
def test_a_command_that_is_not_implemented_is_rejected(name: str) -> None:
    dialogue = led_to(State.READY, shared()).dialogue
    dialogue.out = b""
    dialogue.receive(name.lower().encode() + b" example.com\r\n")
    assert dialogue.out == b"502 %b not implemented\r\n" % name.encode()
    assert dialogue.errors == 0


def reply_where(command: Command, state: State, **required: bool) -> bytes:
    """Return the reply to a command in a state, if TLS or AUTH is required."""
    dialogue = led_to(state, shared(lmtp=command.lmtp)).dialogue
    dialogue.shared = shared(lmtp=command.lmtp, **required)
    dialogue.set_rows()
    dialogue.receive(LINES.get(command.name, command.name.encode()) + b"\r\n")
    return dialogue.out


@pytest.mark.parametrize("state", TAKES_COMMANDS[:-1])
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_only_some_commands_are_allowed_before_a_required_tls(
    command: Command, state: State
) -> None:
    reply = reply_where(command, state, require_starttls=True)
    assert reply.startswith(b"530 Must issue a STARTTLS") is not command.before_tls


@pytest.mark.parametrize("state", TAKES_COMMANDS[:-1])
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_some_commands_are_rejected_before_a_required_auth(command: Command, state: State) -> None:
    reply = reply_where(command, state, auth_required=True)
    told_first = state is State.HELLO and state in command.otherwise
    refused = command.needs_auth and not told_first
    assert reply.startswith(b"530 5.7.0 Authentication required") is refused


def test_no_reply_is_given_in_a_state_that_takes_no_commands() -> None:
    for command in COMMANDS:
        for state in (*command.otherwise, *command.late):
            assert state in TAKES_COMMANDS
        assert not command.otherwise.keys() & command.late.keys()


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.lmtp is not None])
def test_a_command_of_the_other_protocol_is_rejected(command: Command) -> None:
    offline = Offline(shared(lmtp=not command.lmtp))
    offline.feed(LINES[command.name] + b"\r\n")
    assert offline.sent.splitlines()[-1].startswith(b"500 ")
    assert offline.dialogue.state is State.HELLO
