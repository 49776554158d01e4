"""Options of mail in a real process: handlers, the hostname, and bare newlines."""

from __future__ import annotations

from email import message_from_string
from typing import TYPE_CHECKING

import pytest
from support.daemon import CONSOLE_SCRIPT, LOCAL, Daemon, messages
from support.dialogue import begin, first_line

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("options", "code", "kept"),
    [
        ((), 250, b"Subject: x\r\n\r\none\r\ntwo\r\n.\r\nthree\r\n"),
        (("--bare-newline", "reject"), 550, None),
        (("--bare-newline", "normalize"), 250, b"Subject: x\r\n\r\none\r\ntwo\r\n.\r\nthree\r\n"),
        (("--bare-newline", "accept"), 250, b"Subject: x\r\n\r\none\ntwo\n.\nthree\r\n"),
    ],
    ids=["default", "reject", "normalize", "accept"],
)
def test_bare_newline_sets_the_handling_of_a_bare_lf(
    tmp_path: Path, options: tuple[str, ...], code: int, kept: bytes | None
) -> None:
    """With a handler that keeps the bytes, as a Maildir converts CR LF to LF."""
    (tmp_path / "keep.py").write_text(
        "import pathlib\n\n\nclass Keep:\n"
        "    async def handle_DATA(self, server, session, envelope):\n"
        "        pathlib.Path('kept').write_bytes(envelope.content)\n"
        "        return '250 ok'\n"
    )
    always = ("-l", "127.0.0.1:0", "--handler", "keep:Keep")
    with Daemon(*always, *options, cwd=tmp_path) as daemon, daemon.smtp() as client:
        begin(client)
        client.send(b"Subject: x\r\n\r\none\ntwo\n.\nthree\r\n.\r\n")
        answer, text = client.getreply()
        assert answer == code
        assert code == 250 or text.startswith(b"5.6.11 ")
        assert client.noop()[0] == 250
    path = tmp_path / "kept"
    assert (path.read_bytes() if path.exists() else None) == kept


@pytest.mark.parametrize(("options", "code"), [((), 250), (("--strict-paths",), 553)])
def test_strict_paths_refuses_an_address_without_brackets(
    tmp_path: Path, options: tuple[str, ...], code: int
) -> None:
    with Daemon(*LOCAL, *options, cwd=tmp_path) as daemon, daemon.smtp() as client:
        client.ehlo()
        assert client.docmd("MAIL FROM: a@example.com SIZE=5")[0] == code
        client.rset()
        assert client.docmd("MAIL FROM: <a@example.com> SIZE=5")[0] == 250


def test_without_a_handler_mail_is_stored_in_a_maildir_in_the_current_directory(
    tmp_path: Path,
) -> None:
    with Daemon("-l", "127.0.0.1:0", cwd=tmp_path) as daemon:
        daemon.deliver()
    (text,) = messages(tmp_path / "Maildir")
    message = message_from_string(text)
    assert message["Return-Path"] == "<a@example.com>"
    assert message["Delivered-To"] == "b@example.com"
    assert message.get_payload() == "hello\n"


def test_debug_prints_to_standard_output(tmp_path: Path) -> None:
    with Daemon("-l", "127.0.0.1:0", "--handler", "debug", cwd=tmp_path) as daemon:
        daemon.deliver("Subject: look\r\n\r\nat this\r\n")
        daemon.stop()
        assert daemon.process.stdout is not None
        printed = daemon.process.stdout.read()
    assert "from: a@example.com  to: b@example.com\n" in printed
    assert "Subject: look\n\nat this\n" in printed


def test_discard_stores_nothing(tmp_path: Path) -> None:
    with Daemon(*LOCAL, cwd=tmp_path) as daemon:
        daemon.deliver()
    assert list(tmp_path.iterdir()) == []


HANDLERS = """
class Only:
    def __init__(self, *names):
        self.names = names

    async def handle_RCPT(self, server, session, envelope, address, options):
        if address.partition("@")[0] not in self.names:
            return "550 5.1.1 Only " + " and ".join(self.names)
        envelope.rcpt_tos.append(address)
        return "250 ok"


instance = Only("instance")


def factory(*names):
    return Only("factory", *names)
"""


@pytest.mark.parametrize(
    ("handler", "names"),
    [
        ("rules:instance", "instance"),
        ("rules:Only:b,c", "b and c"),
        ("rules:factory", "factory"),
        ("rules:factory:d", "factory and d"),
    ],
)
def test_a_users_handler_is_imported_from_the_current_directory(
    tmp_path: Path, handler: str, names: str
) -> None:
    """With the console script, as `python -m` would search the directory by itself."""
    (tmp_path / "rules.py").write_text(HANDLERS)
    options = ("-l", "127.0.0.1:0", "--handler", handler, "--handler", "discard")
    with (
        Daemon(*options, cwd=tmp_path, command=[str(CONSOLE_SCRIPT)]) as daemon,
        daemon.smtp() as client,
    ):
        client.ehlo()
        client.mail("a@example.com")
        assert client.rcpt("nobody@example.com") == (550, f"5.1.1 Only {names}".encode())
        assert client.rcpt(f"{names.rsplit(maxsplit=1)[-1]}@example.com")[0] == 250
        assert client.data("hello\r\n")[0] == 250


def test_the_mailbox_of_aiosmtpd_can_be_used(tmp_path: Path) -> None:
    handler = f"aiosmtpd.handlers:Mailbox:{tmp_path}/box"
    with Daemon("-l", "127.0.0.1:0", "--handler", handler, cwd=tmp_path) as daemon:
        daemon.deliver()
    (text,) = messages(tmp_path / "box")
    assert "\nX-RcptTo: b@example.com\n" in text
    assert text.endswith("hello\n")


def test_hostname_is_in_the_greeting_and_in_the_headers(tmp_path: Path) -> None:
    options = ("-l", "127.0.0.1:0", "--hostname", "mx.example.com")
    with Daemon(*options, cwd=tmp_path) as daemon:
        banner = first_line(("127.0.0.1", daemon.port))
        assert banner == "220 mx.example.com ESMTP smtpd-fork\r\n"
        daemon.deliver()
    assert "by mx.example.com (smtpd-fork)" in messages(tmp_path / "Maildir")[0]
