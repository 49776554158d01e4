"""Dropping privileges: steps that root does before, errors after it, and the cleanup process."""

from __future__ import annotations

import os
import re
import signal
import smtplib
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from support.daemon import (
    LOCAL,
    PATIENCE,
    Daemon,
    Detached,
    Process,
    messages,
    run,
    until,
    wait_until_gone,
)
from support.dialogue import begin_data, last_word
from support.peers import cannot, proc

if TYPE_CHECKING:
    from pathlib import Path

    from support.tls import Certificates

NOBODY = 65534


@pytest.fixture
def public(public: Path) -> Path:
    """A directory that the user `nobody` can enter; with `spool` of `nobody`, and `run` of root."""
    (public / "spool").mkdir()
    os.chown(public / "spool", NOBODY, NOBODY)
    (public / "run").mkdir(0o700)
    return public


AS_NOBODY = ("-l", "127.0.0.1:0", "-u", "nobody", "--handler", "maildir:spool/Maildir")


def test_the_process_becomes_the_user_with_all_its_ids(
    public: Path, command_for_nobody: list[str]
) -> None:
    with Daemon(*AS_NOBODY, cwd=public, command=command_for_nobody) as daemon:
        status = Process(daemon.process.pid).status
        assert status["Uid"] == [str(NOBODY)] * 4
        assert status["Gid"] == [str(NOBODY)] * 4
        assert status["Groups"] == [str(NOBODY)]
        for capabilities in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
            assert int(status[capabilities][0], 16) == 0


def test_the_process_cannot_become_root_again(public: Path, command_for_nobody: list[str]) -> None:
    proc()
    (public / "attempt.py").write_text(
        "import os\n\n\n"
        "def attempt(call, *args):\n"
        "    try:\n"
        "        call(*args)\n"
        "    except PermissionError:\n"
        "        return 'refused'\n"
        "    return 'came back'\n\n\n"
        "class Attempt:\n"
        "    async def handle_DATA(self, server, session, envelope):\n"
        "        calls = [(os.setuid, 0), (os.seteuid, 0), (os.setresuid, -1, 0, -1),\n"
        "                 (os.setgid, 0), (os.setegid, 0), (os.setgroups, [0]),\n"
        "                 (os.listdir, 'ROOTS'), (os.open, '/proc/1/environ', os.O_RDONLY)]\n"
        "        return '250 ' + ' '.join({attempt(*call) for call in calls})\n".replace(
            "ROOTS", str(public / "run")
        )
    )
    options = ("-l", "127.0.0.1:0", "-u", "nobody", "--handler", "attempt:Attempt")
    with Daemon(*options, cwd=public, command=command_for_nobody) as daemon:
        with daemon.smtp() as client:
            client.ehlo()
            client.mail("a@example.com")
            client.rcpt("b@example.com")
            assert client.data("hello") == (250, b"refused")


def test_a_user_may_be_named_by_its_number(public: Path, command_for_nobody: list[str]) -> None:
    options = ("-l", "127.0.0.1:0", "--user", str(NOBODY), "--handler", "discard")
    with Daemon(*options, cwd=public, command=command_for_nobody) as daemon:
        assert Process(daemon.process.pid).status["Uid"] == [str(NOBODY)] * 4
        assert "running as root" not in daemon.log


def test_a_warning_is_logged_if_the_daemon_runs_as_root(
    public: Path, command_for_nobody: list[str]
) -> None:
    with Daemon(*LOCAL, cwd=public, command=command_for_nobody) as daemon:
        assert "WARNING running as root; name a user with --user" in daemon.log


def test_the_maildir_belongs_to_the_user(public: Path, command_for_nobody: list[str]) -> None:
    with Daemon(*AS_NOBODY, cwd=public, command=command_for_nobody) as daemon:
        daemon.deliver()
    maildir = public / "spool/Maildir"
    assert len(messages(maildir)) == 1
    made = [maildir, *maildir.rglob("*")]
    assert {(path.stat().st_uid, path.stat().st_gid) for path in made} == {(NOBODY, NOBODY)}


def test_a_privileged_port_is_bound_before_privileges_are_dropped(
    public: Path, command_for_nobody: list[str]
) -> None:
    first = int(proc("sys/net/ipv4/ip_unprivileged_port_start").read_text())
    if first <= 1:
        cannot("no port takes privileges")
    port = free_privileged_port(first)
    options = ("-l", f"127.0.0.1:{port}", "-u", "nobody", "--handler", "discard")
    with Daemon(*options, cwd=public, command=command_for_nobody) as daemon:
        daemon.deliver()


def free_privileged_port(first: int) -> int:
    for port in range(first - 1, 0, -1):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("every privileged port is taken")


def test_files_that_only_root_can_read_are_read_before_privileges_are_dropped(
    public: Path, command_for_nobody: list[str], certificates: Certificates
) -> None:
    tls = ("--tls-cert", str(certificates.cert), "--tls-key", str(certificates.key))
    assert certificates.key.parent.stat().st_mode & 0o077 == 0
    log = public / "run/smtpd.log"
    options = (*AS_NOBODY, *tls, "--log-to", str(log), "--detach", "--pid-file", "run/daemon.pid")
    ended = run(*options, cwd=public, command=command_for_nobody)
    assert (ended.returncode, ended.stderr) == (0, "")
    pid = int((public / "run/daemon.pid").read_text())
    try:
        assert Process(pid).status["Uid"] == [str(NOBODY)] * 4
        found = re.search(r"listening on 127\.0\.0\.1:(\d+)$", log.read_text(), re.MULTILINE)
        assert found
        with smtplib.SMTP("127.0.0.1", int(found[1]), timeout=PATIENCE) as client:
            client.starttls(context=certificates.client)
            assert client.noop()[0] == 250
    finally:
        os.kill(pid, signal.SIGTERM)
        wait_until_gone(pid)
    until(lambda: not (public / "run/daemon.pid").exists(), "the pid-file is removed")
    assert log.read_text().endswith("INFO stopped\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("detach", [False, True], ids=["foreground", "detached"])
def test_files_that_only_root_can_remove_are_removed_at_the_end(
    public: Path, command_for_nobody: list[str], number: signal.Signals, *, detach: bool
) -> None:
    pid_file, sock = public / "run/daemon.pid", public / "run/smtp.sock"
    options = (*AS_NOBODY, "-l", f"unix:{sock}", "--pid-file", str(pid_file))
    kind = Detached if detach else Daemon
    with kind(*options, cwd=public, command=command_for_nobody) as daemon:
        pid = int(pid_file.read_text())
        assert Process(pid).status["Uid"] == [str(NOBODY)] * 4
        assert (sock.stat().st_uid, sock.stat().st_gid) == (NOBODY, NOBODY)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(sock))
            assert client.recv(4) == b"220 "
        daemon.stop(number)
    if number == signal.SIGKILL:  # no process waited for the cleanup process
        until(lambda: not any((public / "run").iterdir()), "the cleanup process is done")
    assert list((public / "run").iterdir()) == []


def test_files_of_a_killed_daemon_do_not_prevent_a_restart(
    public: Path, command_for_nobody: list[str]
) -> None:
    options = (*AS_NOBODY, "-l", "unix:run/smtp.sock", "--pid-file", "run/daemon.pid")
    with Daemon(*options, cwd=public, command=command_for_nobody) as first:
        first.stop(signal.SIGKILL)
    with Daemon(*options, cwd=public, command=command_for_nobody) as second:
        assert (public / "run/daemon.pid").read_text() == f"{second.process.pid}\n"
        assert second.stop() == 0


def test_the_cleanup_process_does_not_remove_the_socket_of_the_next_daemon(
    public: Path, command_for_nobody: list[str]
) -> None:
    """If the user may remove the path, it can be used before the cleanup process ends."""
    path = public / "spool/smtp.sock"
    options = ("-u", "nobody", "-l", f"unix:{path}", "--handler", "discard")
    with (
        Daemon("-l", "127.0.0.1:0", *options, cwd=public, command=command_for_nobody) as old,
        old.smtp() as client,
    ):
        begin_data(client)
        old.signal(signal.SIGTERM)
        until(lambda: not path.exists(), "the old socket's path is removed")
        with Daemon(*options, cwd=public, command=command_for_nobody) as new:
            client.send(b"\r\n.\r\n")
            assert client.getreply()[0] == 250
            assert last_word(client) == (421, b"4.3.2")
            assert old.process.wait(PATIENCE) == 0
            assert path.exists()
            assert new.stop() == 0


def test_the_cleanup_process_has_no_open_port_and_ends_with_the_daemon(
    public: Path, command_for_nobody: list[str]
) -> None:
    with Daemon(*AS_NOBODY, cwd=public, command=command_for_nobody) as daemon:
        children = proc(daemon.process.pid, "task", daemon.process.pid, "children")
        (cleanup_process,) = map(int, children.read_text().split())
        assert proc(cleanup_process, "comm").read_text() == "smtpd-fork-rm\n"
        links = [os.readlink(entry) for entry in proc(cleanup_process, "fd").iterdir()]
        assert len([link for link in links if link.startswith("socket:")]) == 1
        port = daemon.port
        daemon.stop(signal.SIGKILL)
        wait_until_gone(cleanup_process)
        socket.create_server(("127.0.0.1", port)).close()
