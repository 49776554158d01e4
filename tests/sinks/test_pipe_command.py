"""Arguments and variables of a command: no address can inject an option or a command."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.mail import a_mail

from smtpd_fork.message import MailClient, Recipient
from smtpd_fork.setting_types import SettingError
from smtpd_fork.sinks.pipe_command import AddressRefusedError, PipeCommand

if TYPE_CHECKING:
    from pathlib import Path


def arguments(command: str, recipient: str = "b+x@example.com", sender: str = "a@b") -> list[bytes]:
    return PipeCommand(command).arguments(sender, recipient)


def test_a_command_is_split_like_in_a_shell_before_words_are_replaced() -> None:
    said = arguments("""/bin/mda -f {sender} '-d {user}' "{ext}@{domain}" {{x}} -r{recipient}""")
    assert said == [
        *(b"/bin/mda", b"-f", b"a@b", b"-d b", b"x@example.com", b"{x}", b"-rb+x@example.com"),
    ]


@pytest.mark.parametrize("user", ["a b", "a;id", "$(id)", "`id`", "a'b", 'a"b', "a\\b", "*", "a\n"])
def test_an_address_is_one_argument_whatever_it_contains(user: str) -> None:
    assert arguments("/bin/mda {user}", f"{user}@x") == [b"/bin/mda", user.encode()]


@pytest.mark.parametrize(
    ("command", "recipient", "refused"),
    [
        ("/bin/mda {user}", "-x@b", True),
        ("/bin/mda {user}", '"-x"@b', True),
        ("/bin/mda {recipient}", "-x@b", True),
        ("/bin/mda {ext}", "a+-x@b", True),
        ("/bin/mda {user}{domain}", "@-x", True),
        ("/bin/mda -- {user}", "-x@b", False),
        ("/bin/mda {user} -- x", "-x@b", True),
        ("/bin/mda -d{user}", "-x@b", False),
        ("/bin/mda --user={user}", "-x@b", False),
        ("/bin/mda x{user}", "-x@b", False),
        ("/bin/mda {user}", "a\0b@c", True),
        ("/bin/mda {user}", "a\ud800b@c", True),
        ("/bin/mda {user}", "é@c", False),
        ("/bin/mda", "-x@b", False),
    ],
)
def test_an_address_that_would_be_an_option_is_refused(
    command: str, recipient: str, refused: bool
) -> None:
    if not refused:
        assert arguments(command, recipient)[0] == b"/bin/mda"
        return
    with pytest.raises(AddressRefusedError) as caught:
        arguments(command, recipient)
    assert caught.value.reply.startswith("553 5.1.3 ")


def test_a_sender_that_would_be_an_option_is_refused_as_such() -> None:
    with pytest.raises(AddressRefusedError) as caught:
        arguments("/bin/mda {sender}", sender="-x@b")
    assert caught.value.reply.startswith("553 5.1.7 ")
    assert arguments("/bin/mda {sender}", sender="") == [b"/bin/mda", b""]


@given(st.text(), st.text())
def test_words_never_change_the_number_of_arguments(user: str, sender: str) -> None:
    try:
        said = arguments("/bin/mda -f {sender} -- {user} {ext}", f"{user}@x", sender)
    except AddressRefusedError:
        return
    assert len(said) == 6
    assert not any(b"\0" in each for each in said)


def test_only_a_word_of_the_recipient_causes_a_run_for_each_recipient() -> None:
    assert not PipeCommand("/bin/mda {sender} {{user}}").for_each
    assert all(PipeCommand(f"m {{{w}}}").for_each for w in ("user", "domain", "ext", "recipient"))


def test_a_relative_program_is_made_absolute_and_a_bare_name_searched_in_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert PipeCommand("./mda x").program == str(tmp_path / "mda")
    assert PipeCommand("maildrop x").program == "maildrop"


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("", "expected a program"),
        ("/bin/mda a\0b", "expected a program"),
        ("/bin/mda 'x", "no closing quotation"),
        ("/bin/mda {usr}", "unknown {usr}; did you mean {user}?"),
        ("/bin/mda {home}", "known words are {user}, {domain}, {ext}, {recipient}, {sender}"),
        ("/bin/{user}", "the program cannot depend on an address"),
    ],
)
def test_a_command_that_cannot_be_used_is_an_error(command: str, reason: str) -> None:
    with pytest.raises(SettingError, match=re.escape(reason)):
        PipeCommand(command)


def test_the_environment_contains_the_envelope_path_and_lang(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/bin")
    monkeypatch.delenv("LANG", raising=False)
    monkeypatch.setenv("SECRET", "x")
    client = MailClient(("2001:db8::1", 25, 0, 0), "a\0b", "mx.example.org")
    mail = a_mail(sender="é@example.org", client=client)
    said = PipeCommand("m").environment(mail, [Recipient("b+x+y@Example.com")])
    assert said == {
        "PATH": b"/bin",
        "LANG": b"C.UTF-8",
        "SENDER": "é@example.org".encode(),
        "QUEUE_ID": b"77-1-1",
        "CLIENT_ADDRESS": b"2001:db8::1",
        "CLIENT_HELO": b"a?b",
        "CLIENT_HOSTNAME": b"mx.example.org",
        "RECIPIENT": b"b+x+y@Example.com",
        "DOMAIN": b"example.com",
        "EXTENSION": b"x+y",
    }
    several = PipeCommand("m").environment(mail, [Recipient("a@b"), Recipient("c@d")])
    assert "RECIPIENT" not in several


def test_the_client_of_xforward_is_used_if_it_was_sent() -> None:
    client = MailClient(("127.0.0.1", 25), "filter.example", "localhost")
    mail = replace(a_mail(client=client), xforward={"ADDR": "192.0.2.7", "HELO": "x.example"})
    said = PipeCommand("m").environment(mail, [Recipient("b@example.com")])
    of_client = {name: value for name, value in said.items() if name.startswith("CLIENT_")}
    assert of_client == {
        "CLIENT_ADDRESS": b"192.0.2.7", "CLIENT_HELO": b"x.example", "CLIENT_HOSTNAME": b"",
    }  # fmt: skip


def test_a_client_of_a_unix_socket_has_no_address() -> None:
    mail = a_mail(client=MailClient(""))
    assert PipeCommand("m").environment(mail, mail.recipients)["CLIENT_ADDRESS"] == b""
