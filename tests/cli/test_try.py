"""``smtpd-fork try``: one message through the handlers, without a server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

HANDLERS = """
from aiosmtpd.smtp import MISSING


class Policy:
    async def handle_RCPT(self, server, session, envelope, address, options):
        if session.peer[0] == "2001:db8::7":
            return "450 4.7.1 Try later"
        if address.endswith("@bad.example"):
            return "550 5.7.1 We do not relay"
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 Ok"

    async def handle_DATA(self, server, session, envelope):
        if b"boom" in envelope.content:
            raise ValueError("boom\\x1b[2J")
        return MISSING


class Closed:
    __slots__ = ()

    async def handle_CONNECT(self, server, session):
        return "554 5.7.1 Nobody"
"""

MESSAGE = b"Subject: x\n\nhello\n.dot\nlast, without a line end"


def tried(
    folder: Path, *words: str, handlers: tuple[str, ...] = ("mine:Policy", "discard")
) -> subprocess.CompletedProcess[str]:
    """Try a message; ``-`` is the message above."""
    (folder / "mine.py").write_text(HANDLERS)
    (folder / "message").write_bytes(MESSAGE)
    named = [word for handler in handlers for word in ("--handler", handler)]
    return subprocess.run(
        [sys.executable, "-m", "smtpd_fork", "try", *named, *words],
        cwd=folder, input=MESSAGE.decode(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_each_hooks_answer_and_time_are_shown(tmp_path: Path) -> None:
    ended = tried(
        tmp_path,
        *("--from", "a@example.org", "--to", "b@example.net", "--to", "c@bad.example"),
        *("--message", "message", "--hostname", "mx.example.com"),
    )
    assert (ended.returncode, ended.stderr) == (os.EX_OK, "")
    assert re.sub(r"\(\d+\.\d ms\)", "(N ms)", ended.stdout).splitlines() == [
        "connected from 192.0.2.1: 220 mx.example.com Python SMTP 1.4.6",
        "EHLO client.example: 250 HELP",
        "MAIL FROM:<a@example.org>: 250 2.1.0 OK",
        "  Policy.handle_RCPT  250 2.1.5 Ok  (N ms)",
        "RCPT TO:<b@example.net>: 250 2.1.5 Ok",
        "  Policy.handle_RCPT  550 5.7.1 We do not relay  (N ms)",
        "RCPT TO:<c@bad.example>: 550 5.7.1 We do not relay",
        "DATA: 354 End data with <CR><LF>.<CR><LF>",
        "  Policy.handle_DATA  no opinion  (N ms)",
        "  Discard.handle_DATA  250 2.0.0 Ok: discarded  (N ms)",
        f"message of {len(MESSAGE)} bytes: 250 2.0.0 Ok: discarded",
    ]


def test_a_sink_delivers_what_it_accepts(tmp_path: Path) -> None:
    ended = tried(
        tmp_path, "--to", "b@example.net", "--message", "-", handlers=(f"maildir:{tmp_path}/M",)
    )
    assert ended.returncode == os.EX_OK, ended
    (path,) = (tmp_path / "M/new").iterdir()
    assert path.read_bytes().endswith(b"hello\n.dot\nlast, without a line end\n")


def test_each_of_several_sinks_is_shown(tmp_path: Path) -> None:
    handlers = ("mine:Policy", "maildir:one,for=a.example", "discard", "maildir:two,copy=true")
    to = ("--to", "x@a.example", "--to", "y@b.example")
    ended = tried(tmp_path, "--message", "-", *to, handlers=handlers)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    shown = re.findall(r"(\w+)\.deliver  250", ended.stdout)
    assert sorted(shown) == ["Discard", "Maildir", "Maildir"]
    assert all(len(list((tmp_path / name / "new").iterdir())) == 1 for name in ("one", "two"))


@pytest.mark.parametrize(
    ("words", "status", "shown"),
    [
        (("--to", "c@bad.example"), os.EX_UNAVAILABLE, "550 5.7.1 We do not relay"),
        (
            ("--to", "b@example.net", "--peer", "2001:db8::7"),
            os.EX_TEMPFAIL,
            "450 4.7.1 Try later",
        ),
        (("--to", "not an address"), os.EX_UNAVAILABLE, "553 5.1.3 Error: malformed address"),
        (("--to", "b@example.net", "--max-message-size", "10"), os.EX_UNAVAILABLE, "552 5.3.4"),
    ],
    ids=["rejected", "deferred", "no address", "too large"],
)
def test_the_exit_status_depends_on_the_reply(
    words: tuple[str, ...], status: int, shown: str, tmp_path: Path
) -> None:
    ended = tried(tmp_path, *words, "--message", "message")
    assert ended.returncode == status, ended
    assert shown in ended.stdout.splitlines()[-1]


def test_a_hook_that_raises_is_shown_with_its_traceback(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"boom")
    ended = tried(tmp_path, "--to", "b@example.net", "--message", "other")
    assert ended.returncode == os.EX_TEMPFAIL
    assert "Policy.handle_DATA  raised ValueError: boom\\x1b[2J" in ended.stdout
    assert "451 4.3.0 Local error" in ended.stdout
    assert 'raise ValueError("boom' in ended.stderr


def test_a_connection_that_a_handler_refuses_gets_no_command(tmp_path: Path) -> None:
    ended = tried(
        tmp_path,
        "--to",
        "b@example.net",
        "--message",
        "message",
        handlers=("mine:Closed", "discard"),
    )
    assert ended.returncode == os.EX_UNAVAILABLE
    assert ended.stdout.splitlines()[-1] == "connected from 192.0.2.1: 554 5.7.1 Nobody"


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("--message", "message"), os.EX_USAGE, "--to"),
        (("--to", "b@example.net"), os.EX_USAGE, "--message"),
        (("--to", "b@c", "--message", "nosuch"), os.EX_CONFIG, "cannot read the message nosuch"),
        (
            ("--to", "b@c", "--message", "message", "--handler", "nosuch:Handler"),
            os.EX_CONFIG,
            "nosuch",
        ),
    ],
)
def test_an_error_is_one_line(
    words: tuple[str, ...], status: int, said: str, tmp_path: Path
) -> None:
    ended = tried(tmp_path, *words)
    assert ended.returncode == status, ended
    (line,) = ended.stderr.splitlines()
    assert said in line
