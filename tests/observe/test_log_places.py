"""Log targets: files that are renamed, a syslogd that is restarted, and the journal."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from signal import SIGHUP
from typing import TYPE_CHECKING

import pytest
from support.daemon import LOCAL, PATIENCE, Detached, clean_environment, end, run, until
from support.logs import bound, entry_from, logging_with, objects
from support.peers import namespaces, peer, peers

from smtpd_fork.config import DaemonConfig
from smtpd_fork.observe.logs import LogReload, setup

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

log = logging.getLogger("handler.of.a.test")


# -- files -----------------------------------------------------------------------------------------


def test_a_file_that_logrotate_has_renamed_is_opened_again(tmp_path: Path) -> None:
    rotate = peer("logrotate")
    with Detached(*LOCAL, cwd=tmp_path) as daemon:
        old = daemon.text
        place = daemon.log
        (tmp_path / "logrotate.conf").write_text(
            f"{place} {{\n rotate 3\n create 0600\n postrotate\n  kill -HUP {daemon.pid}\n"
            " endscript\n}\n"
        )
        tmp_path.chmod(0o700)
        (tmp_path / "logrotate.conf").chmod(0o600)
        command = [rotate, "--force", "--state", "state", "logrotate.conf"]
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        until(lambda: "configuration reloaded" in place.read_text(), "a line in the new file")
        assert f"INFO log file reopened: {place}" in place.read_text()
        moved = place.with_name(place.name + ".1").read_text()
        assert moved.startswith(old)
        daemon.stop()
        assert place.read_text().endswith("INFO stopped\n")
        assert "stopped" not in moved


def test_a_file_that_was_not_renamed_stays_in_use_without_a_message(tmp_path: Path) -> None:
    with Detached(*LOCAL, cwd=tmp_path) as daemon:
        os.kill(daemon.pid, SIGHUP)
        until(lambda: "configuration reloaded" in daemon.text, "the reload")
        daemon.stop()
        assert "reopened" not in daemon.text
        assert daemon.text.endswith("INFO stopped\n")


def test_an_error_of_reopening_is_logged_to_the_old_file(tmp_path: Path) -> None:
    with Detached(*LOCAL, cwd=tmp_path) as daemon:
        moved = tmp_path / "moved"
        daemon.log.rename(moved)
        daemon.log.mkdir()
        os.kill(daemon.pid, SIGHUP)
        message = "ERROR cannot reopen the log, logging continues here: Is a directory"
        until(lambda: message in moved.read_text(), "the complaint")
        daemon.stop()
        assert moved.read_text().endswith("INFO stopped\n")


def test_a_user_that_cannot_create_the_new_file_continues_with_the_old_one(
    command_for_nobody: list[str], public: Path
) -> None:
    with Detached(*LOCAL, "-u", "nobody", cwd=public, command=command_for_nobody) as daemon:
        moved = public / "moved"
        daemon.log.rename(moved)
        os.kill(daemon.pid, SIGHUP)
        until(lambda: "here: Permission denied" in moved.read_text(), "the complaint")
        daemon.log.touch()
        shutil.chown(daemon.log, "nobody")
        os.kill(daemon.pid, SIGHUP)
        until(lambda: "log file reopened" in daemon.text, "the new file")


def test_a_fifo_without_a_reader_is_an_error_of_the_start(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    ended = run(*LOCAL, "--log-to", "fifo", cwd=tmp_path)
    assert ended.returncode == os.EX_CANTCREAT
    assert f"cannot log to {tmp_path}/fifo: No such device or address" in ended.stderr


# -- syslog ----------------------------------------------------------------------------------------


@contextmanager
def rsyslogd(folder: Path) -> Iterator[Path]:
    """Run a real syslogd on a socket in *folder*; it writes entries to the file ``heard``."""
    program = peer("rsyslogd")
    place, heard = folder / "dev-log", folder / "heard"
    place.unlink(missing_ok=True)
    (folder / "rsyslog.conf").write_text(
        f'module(load="imuxsock" SysSock.Use="off")\ninput(type="imuxsock" Socket="{place}")\n'
        f'template(name="raw" type="string" string="%pri-text% %programname% %procid%%msg%\\n")\n'
        f'*.* action(type="omfile" file="{heard}" template="raw")\n'
    )
    command = [program, "-n", "-iNONE", "-f", str(folder / "rsyslog.conf")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(place.is_socket, "rsyslogd's socket")
        yield heard
    finally:
        end(process)


def test_logging_continues_after_a_restart_of_syslogd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "SYSLOG", str(tmp_path / "dev-log"))
    with rsyslogd(tmp_path) as heard, logging_with(log_to="syslog") as log_queue:
        log_queue.begin()
        log.info("first", extra={"session": "ab-1"})
        until(lambda: heard.exists() and "first" in heard.read_text(), "the first line")
        with rsyslogd(tmp_path):
            log.warning("second", extra={"session": "ab-2"})
            until(lambda: "second" in heard.read_text(), "the second line")
    lines = heard.read_text().splitlines()
    assert f"mail.info smtpd-fork {os.getpid()} INFO [ab-1] first" in lines
    assert f"mail.warning smtpd-fork {os.getpid()} WARNING [ab-2] second" in lines


def test_entries_are_lost_without_syslogd_and_their_number_is_logged_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "dev-log"
    monkeypatch.setattr(setup, "SYSLOG", str(path))
    first = bound(path)
    with logging_with(log_to="syslog") as log_queue:
        log_queue.begin()
        log.info("one")
        assert first.recv(1000).endswith(b"INFO one")
        first.close()
        path.unlink()
        log.info("two")
        until(lambda: log_queue._failed == 1, "the loss")
        with bound(path) as second:
            log.info("three")
            assert second.recv(1000).endswith(b"INFO three")
            message = b"WARNING 1 log entries were lost: they could not be written"
            assert second.recv(1000).endswith(message)


def test_every_datagram_of_a_traceback_has_the_session_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "SYSLOG", str(tmp_path / "dev-log"))
    with bound(tmp_path / "dev-log") as sock, logging_with(log_to="syslog"):
        try:
            raise ValueError("no moon")  # noqa: TRY301 - there has to be a traceback
        except ValueError:
            log.exception("failed", extra={"session": "ab-1"})
        lines: list[bytes] = []
        while not lines or b"no moon" not in lines[-1]:
            lines.append(sock.recv(1000))
    assert len(lines) > 3
    assert all(b"ERROR [ab-1]" in line for line in lines)
    assert all(line.startswith(b"<19>smtpd-fork[") for line in lines)


# -- journald --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, 8000], ids=["small", "large"])
def test_an_entry_of_the_journal_has_its_fields(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large entry is sent as a file in memory, as it does not fit into a datagram."""
    monkeypatch.setattr(setup, "JOURNALD", str(tmp_path / "socket"))
    with bound(tmp_path / "socket") as sock, logging_with(log_to="journald") as log_queue:
        log_queue._target._socket.setsockopt(1, 7, 4096)  # type: ignore[attr-defined]  # SO_SNDBUF
        try:
            raise ValueError("x" * size)  # noqa: TRY301 - there has to be a traceback
        except ValueError:
            log.exception("failed", extra={"session": "ab-1", "mine": "a\nb"})
        entry = entry_from(sock)
    first, *rest = entry["MESSAGE"].split("\n")
    assert first == "[ab-1] failed"
    assert rest[0] == "  Traceback (most recent call last):"
    assert rest[-1] == f"  ValueError: {'x' * size}"
    assert entry["PRIORITY"] == "3"
    assert entry["SYSLOG_IDENTIFIER"] == "smtpd-fork"
    assert entry["SYSLOG_FACILITY"] == "2"
    assert entry["SYSLOG_PID"] == str(os.getpid())
    assert entry["SMTPD_FORK_SESSION"] == "ab-1"
    assert entry["SMTPD_FORK_LOGGER"] == log.name
    assert json.loads(entry["SMTPD_FORK_EXTRA"]) == {"mine": "a\nb"}


def test_the_message_in_the_journal_can_be_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "JOURNALD", str(tmp_path / "socket"))
    options = {"log_to": "journald", "log_format": "json"}
    with bound(tmp_path / "socket") as sock, logging_with(**options):
        log.info("hello")
        assert json.loads(entry_from(sock)["MESSAGE"])["message"] == "hello"


@pytest.mark.parametrize("same", [True, False], ids=["it", "another"])
def test_the_default_is_journald_if_systemd_has_connected_standard_error_to_it(
    same: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "JOURNALD", str(tmp_path / "socket"))
    status = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino + (not same)}")
    assert setup.default_target(detach=False) == "stderr"  # journald does not answer
    with bound(tmp_path / "socket"):
        assert setup.default_target(detach=False) == ("journald" if same else "stderr")
        assert setup.default_target(detach=True) == "syslog"


_IN_THE_JOURNAL = """
set -e
mount -t tmpfs none /run
mkdir -p /run/systemd/journal /run/log/journal
"$JOURNALD" 2>/dev/null & journald=$!
trap 'kill $journald; wait $journald || true' EXIT
for i in $(seq 200); do [ -S /run/systemd/journal/socket ] && break; sleep 0.05; done
"$@"
journalctl --sync
journalctl --output json --no-pager SYSLOG_IDENTIFIER=smtpd-fork
"""

_ONE_SESSION = """
import signal, socket, subprocess, sys, time
path = sys.argv[1]
process = subprocess.Popen(
    [sys.executable, "-m", "smtpd_fork", "-l", "unix:" + path, "--log-to", "journald",
     "--handler", "maildir:mail", "--hostname", "mx.example.com"])
try:
    for _ in range(2000):
        try:
            sock = socket.socket(socket.AF_UNIX); sock.connect(path); break
        except OSError:
            sock.close(); time.sleep(0.01)
    file = sock.makefile("rwb")
    file.readline()
    for line in (b"HELO x", b"MAIL FROM:<a@b.c>", b"RCPT TO:<d@e.f>", b"DATA", b"hello\\r\\n."):
        file.write(line + b"\\r\\n"); file.flush(); file.readline()
    file.close(); sock.close()
finally:
    process.send_signal(signal.SIGTERM)
    sys.exit(process.wait(20))
"""


def test_the_real_journald_stores_the_fields(tmp_path: Path) -> None:
    journald, *_ = peers("systemd-journald", "journalctl", "mount")
    enter = namespaces("--mount", "--propagation", "private")
    done = subprocess.run(
        [
            *(*enter, "/bin/sh", "-c", _IN_THE_JOURNAL, "sh"),
            *(sys.executable, "-c", _ONE_SESSION, str(tmp_path / "smtp.sock")),
        ],
        cwd=tmp_path,
        env=clean_environment(JOURNALD=journald),
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    entries = [json.loads(line) for line in done.stdout.splitlines()]
    assert entries[-1]["MESSAGE"] == "stopped"
    (queued,) = [entry for entry in entries if "queued" in entry["MESSAGE"]]
    assert queued["PRIORITY"] == "6"
    assert queued["_TRANSPORT"] == "journal"
    assert queued["SMTPD_FORK_FROM"] == "a@b.c"
    assert queued["SMTPD_FORK_QUEUE_ID"].startswith(queued["SMTPD_FORK_SESSION"])


# -- without a target ------------------------------------------------------------------------------

_WITHOUT_SYSLOG = """
import sys
from smtpd_fork.config import DaemonConfig
from smtpd_fork.observe.logs import LogReload, setup
setup.SYSLOG = "/nonexistent"
from smtpd_fork.cli import main
sys.exit(main())
"""
WITHOUT_SYSLOG = [sys.executable, "-c", _WITHOUT_SYSLOG]


def test_a_detached_daemon_that_cannot_log_prints_a_warning_at_its_start(tmp_path: Path) -> None:
    options = (*LOCAL, "--detach", "--pid-file", "pid")
    ended = run(*options, cwd=tmp_path, command=WITHOUT_SYSLOG)
    pid = int((tmp_path / "pid").read_text())
    os.kill(pid, 15)
    assert ended.returncode == 0
    assert ended.stderr == (
        "smtpd-fork: warning: no syslog service is available, so nothing is logged; use --log-to\n"
    )
    until(lambda: not (tmp_path / "pid").exists(), "its end")


def test_a_failed_start_prints_no_warning(tmp_path: Path) -> None:
    ended = run(*LOCAL, "--detach", "--tls-cert", "no.pem", cwd=tmp_path, command=WITHOUT_SYSLOG)
    assert ended.returncode == os.EX_CONFIG
    assert ended.stderr.count("\n") == 1
    assert "warning" not in ended.stderr


async def test_a_reload_sets_the_level_of_the_settings_in_force(tmp_path: Path) -> None:
    with logging_with(log_to=str(tmp_path / "log"), log_format="json"):
        log.debug("before")
        await LogReload().reloaded(DaemonConfig.build({"log_level": "debug"}))
        log.debug("after")
    assert "after" in {entry["message"] for entry in objects(tmp_path / "log")}
    assert "before" not in {entry["message"] for entry in objects(tmp_path / "log")}
