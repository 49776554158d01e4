"""Real programs: mail readers find the messages in a mailbox, and MDAs get them from a pipe."""

from __future__ import annotations

import mailbox
import os
import pty
import pwd
import re
import smtplib
import subprocess
from contextlib import suppress
from email import message_from_bytes
from typing import TYPE_CHECKING

import pytest
from support.aiosmtpd_controller import client_of_aiosmtpd
from support.daemon import Daemon
from support.peers import needs_root, needs_terminals, peer, peers

from smtpd_fork.sinks import Maildir
from smtpd_fork.sinks.mbox import Mbox
from smtpd_fork.sinks.pipe import Pipe

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from smtpd_fork.sinks import Sink

pytestmark = pytest.mark.peers

BODIES = [
    "hello\r\n",
    "From here on\r\n>From there\r\nFrom: no header\r\n",
    "..dots\r\n.\r\n\r\nand From an empty line\r\n\r\n\r\n",
    "\r\n",
    "x" * 998 + "\r\n",
    "äöü\r\n",
]

SUBJECTS = [f"message {number}" for number in range(len(BODIES))]


def fill(sink: Sink) -> None:
    """Deliver all messages to b@example.com."""
    with client_of_aiosmtpd(sink) as client:
        for subject, body in zip(SUBJECTS, BODIES, strict=True):
            text = f"From: a@example.org\r\nSubject: {subject}\r\n\r\n{body}"
            client.sendmail("a@example.org", ["b@example.com"], text.encode())


def a_maildir(path: Path) -> Path:
    fill(Maildir(path / "{user}"))
    return path / "b"


def an_mbox(path: Path) -> Path:
    fill(Mbox(path / "{user}"))
    return path / "b"


KINDS = pytest.mark.parametrize("kind", [a_maildir, an_mbox])


def run(
    *command: str | Path, text: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    ended = subprocess.run(
        command,
        input=text,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, **environment},
    )
    assert ended.returncode == 0, ended.stderr
    return ended


@KINDS
def test_s_nail_lists_every_message(kind: Callable[[Path], Path], tmp_path: Path) -> None:
    program = peer("s-nail")
    box = kind(tmp_path)
    listed = run(program, "-n", "-R", "-S", "headline=%s", "-H", "-f", box, HOME=str(tmp_path))
    assert sorted(map(str.strip, listed.stdout.strip().split("\n"))) == SUBJECTS


@KINDS
def test_s_nail_shows_the_text_of_a_message(kind: Callable[[Path], Path], tmp_path: Path) -> None:
    program = peer("s-nail")
    box = kind(tmp_path)
    shown = run(program, "-n", "-R", "-#", "-f", box, text="type 1\nx\n", HOME=str(tmp_path))
    assert "Subject: message 0\n" in shown.stdout
    assert "\n\nhello\n" in shown.stdout


@KINDS
def test_mutt_copies_every_message_into_another_mailbox(
    kind: Callable[[Path], Path], tmp_path: Path
) -> None:
    program = peer("mutt")
    needs_terminals()
    box = kind(tmp_path)
    (tmp_path / "Mail").mkdir()  # otherwise mutt would ask whether to create it
    copies = tmp_path / "copies"
    (tmp_path / "muttrc").write_text(
        "set confirmcreate=no confirmappend=no delete=no move=no sleep_time=0\n"
        "set mbox_type=Maildir auto_tag=yes\n"
        'push "<tag-pattern>~A<enter><copy-message>copies<enter><exit>"\n'
    )
    run_in_a_terminal(tmp_path, program, "-n", "-F", "muttrc", "-f", box)
    copied = [message_from_bytes(path.read_bytes()) for path in copies.glob("[cn]*/*")]
    assert sorted(str(message["Subject"]) for message in copied) == SUBJECTS
    for message in copied:
        body = bytes(message.get_payload(decode=True))
        if not box.is_dir():
            body = re.sub(rb"(?m)^>(>*From )", rb"\1", body)
        came = BODIES[SUBJECTS.index(message["Subject"])]
        assert body.rstrip(b"\n") == unix(came).rstrip(b"\n")


def run_in_a_terminal(directory: Path, *command: str | Path) -> None:
    ours, its = pty.openpty()
    settings = {**os.environ, "TERM": "xterm", "HOME": str(directory)}
    with subprocess.Popen(
        command,
        cwd=directory,
        env=settings,
        stdin=its,
        stdout=its,
        stderr=its,
        start_new_session=True,
    ) as process:
        os.close(its)
        with suppress(OSError):  # EIO: the program has ended
            while os.read(ours, 4096):
                pass
        os.close(ours)
    assert process.returncode == 0


def unix(body: str) -> bytes:
    return body.replace("\r\n", "\n").encode()


@KINDS
def test_dovecot_fetches_every_message(kind: Callable[[Path], Path], public: Path) -> None:
    needs_root()
    doveadm = peers("doveadm", "dovecot")[0]
    box = kind(public)
    storage = f"maildir:{box}" if box.is_dir() else f"mbox:{public}/index:INBOX={box}"
    (public / "dovecot.conf").write_text(
        f"base_dir = {public}/run\nlog_path = {public}/log\nssl = no\nprotocols =\n"
        f"mail_location = {storage}\nmail_uid = nobody\nmail_gid = nogroup\n"
        "first_valid_uid = 0\nfirst_valid_gid = 0\n"
        "mbox_read_locks = fcntl\nmbox_write_locks = dotlock fcntl\n"
    )
    nobody = pwd.getpwnam("nobody")
    for path in (public, *public.rglob("*")):
        os.chown(path, nobody.pw_uid, nobody.pw_gid)
    fetched = run(
        *(doveadm, "-c", public / "dovecot.conf", "fetch", "hdr.subject body", "mailbox", "INBOX"),
        HOME=str(public),
        USER="nobody",
    )
    assert sorted(re.findall(r"hdr\.subject: (.*)", fetched.stdout)) == SUBJECTS
    assert "\nhello\n" in fetched.stdout


# -- MDAs --------------------------------------------------------------------------------------


def test_maildrop_delivers_and_its_exit_status_decides_the_reply(tmp_path: Path) -> None:
    program = peer("maildrop")
    for name in ("tmp", "new", "cur"):
        (tmp_path / "box" / name).mkdir(parents=True)
    rules = tmp_path / "filter"
    rules.write_text(
        "if (/^Subject: unknown/)\n{\n EXITCODE=67\n exit\n}\n"
        "if (/^Subject: later/)\n{\n EXITCODE=75\n exit\n}\n"
        f'to "{tmp_path}/box"\n'
    )
    rules.chmod(0o600)
    codes = []
    with client_of_aiosmtpd(Pipe(f"{program} {rules}")) as client:
        for subject in ("hello", "unknown", "later"):
            try:
                client.sendmail(
                    "a@b.example", ["b@example.com"], f"Subject: {subject}\r\n\r\nx\r\n"
                )
                codes.append(250)
            except smtplib.SMTPDataError as error:
                codes.append(error.smtp_code)
    assert codes == [250, 550, 451]
    (path,) = (tmp_path / "box" / "new").iterdir()
    text = path.read_text()
    assert text.startswith("Return-Path: <a@b.example>\nDelivered-To: b@example.com\n")
    assert text.endswith("\nSubject: hello\n\nx\n")


def test_procmail_and_this_server_can_write_to_the_same_mbox(tmp_path: Path) -> None:
    """Both programs lock the same file."""
    program = peer("procmail")
    rules = tmp_path / "rc"
    rules.write_text(f"DEFAULT={tmp_path}/box\nLOGFILE={tmp_path}/log\n")
    with client_of_aiosmtpd(Pipe(f"{program} -f {{sender}} {rules}")) as client:
        client.sendmail("a@b.example", ["b@example.com"], "Subject: one\r\n\r\nx\r\n")
    with client_of_aiosmtpd(Mbox(tmp_path / "box")) as client:
        client.sendmail("a@b.example", ["b@example.com"], "Subject: two\r\n\r\nx\r\n")
    box = mailbox.mbox(tmp_path / "box")
    assert [message["Subject"] for message in box] == ["one", "two"]
    box.close()


def test_a_daemon_that_has_dropped_privileges_runs_maildrop(
    public: Path, command_for_nobody: list[str]
) -> None:
    """As the user nobody, without capabilities."""
    program = peer("maildrop")
    nobody = pwd.getpwnam("nobody")
    box = public / "box"
    for path in (box, *(box / name for name in ("tmp", "new", "cur"))):
        path.mkdir()
        os.chown(path, nobody.pw_uid, nobody.pw_gid)
    rules = public / "filter"
    rules.write_text(f'to "{box}"\n')
    os.chown(rules, nobody.pw_uid, nobody.pw_gid)
    rules.chmod(0o600)
    options = ("-l", "127.0.0.1:0", "--user", "nobody", "--handler", f"pipe:{program} {rules}")
    with Daemon(*options, cwd=public, command=command_for_nobody) as daemon:
        daemon.deliver()
    (path,) = (box / "new").iterdir()
    assert path.stat().st_uid == nobody.pw_uid
