"""Options of the process in a real process: the loop, the stop, and the log."""

from __future__ import annotations

import os
import re
import subprocess
import time
from typing import TYPE_CHECKING

import pytest
from support.daemon import COMMAND, LOCAL, PATIENCE, Daemon, clean_environment, run, until
from support.dialogue import connect, first_line

if TYPE_CHECKING:
    import socket
    from pathlib import Path


def test_it_runs_on_the_chosen_loop(tmp_path: Path) -> None:
    (tmp_path / "which.py").write_text(
        "import asyncio\n\n\nclass Which:\n"
        "    async def handle_DATA(self, server, session, envelope):\n"
        "        return '250 ' + type(asyncio.get_running_loop()).__module__\n"
    )
    said = {}
    for loop in ("uvloop", "asyncio"):
        options = ("-l", "127.0.0.1:0", "--handler", "which:Which", "--loop", loop)
        with Daemon(*options, cwd=tmp_path) as daemon, daemon.smtp() as client:
            client.ehlo()
            client.mail("a@example.com")
            client.rcpt("b@example.com")
            said[loop] = client.data("hello")
    assert said["uvloop"] == (250, b"uvloop")
    assert said["asyncio"][1].startswith(b"asyncio.")


def test_shutdown_timeout_limits_a_message_in_progress(tmp_path: Path) -> None:
    options = ("--shutdown-timeout", "200ms")
    with Daemon(*LOCAL, *options, cwd=tmp_path) as daemon, daemon.smtp() as client:
        client.ehlo()
        client.mail("a@example.com")
        client.rcpt("b@example.com")
        client.putcmd("DATA")
        assert client.getreply()[0] == 354
        begun = time.monotonic()
        assert daemon.stop() == os.EX_TEMPFAIL
        assert 0.15 < time.monotonic() - begun < 5
        assert "1 session closed early" in daemon.log


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_log_level_is_the_minimum_severity(tmp_path: Path, level: str) -> None:
    log = tmp_path / "log"
    path = str(tmp_path / "smtp.sock")
    options = ("-l", f"unix:{path}", "--handler", "discard", "--log-to", "log", "-c", "1")
    with subprocess.Popen(
        [*COMMAND, *options, "--when-full", "refuse", "--log-level", level],
        cwd=tmp_path,
        env=clean_environment(),
    ) as process:
        try:
            held = greeted(path)
            assert first_line(path).startswith("421 ")  # and so a warning
            held.close()
        finally:
            process.terminate()
        assert process.wait(PATIENCE) == 0
    levels = ["DEBUG", "INFO", "WARNING", "ERROR"]
    logged = {line.split()[2] for line in log.read_text().splitlines()}
    wanted = set(levels[levels.index(level.upper()) :]) & {"INFO", "WARNING"}
    assert logged - {"DEBUG"} == wanted


def greeted(path: str) -> socket.socket:
    """Return an admitted client of a daemon that does not report when it serves."""
    until(lambda: os.path.exists(path), "the socket's path")
    while True:
        try:
            client = connect(path)
        except ConnectionRefusedError:  # bound, and not listening yet
            continue
        assert client.recv(4) == b"220 "
        return client


def logging_to(where: str, folder: Path) -> subprocess.Popen[str]:
    """Start a daemon that logs to this destination, and whose output can be read."""
    return subprocess.Popen(
        [*COMMAND, *LOCAL, "--log-to", where],
        cwd=folder,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_log_to_a_file_writes_nothing_to_standard_error(tmp_path: Path) -> None:
    log = tmp_path / "smtpd.log"
    with logging_to("smtpd.log", tmp_path) as process:
        try:
            until(lambda: log.exists() and "serving, pid" in log.read_text(), "serving")
        finally:
            process.terminate()
        assert process.communicate(timeout=PATIENCE) == ("", "")
    lines = log.read_text().splitlines()
    assert lines[-1].endswith("INFO stopped")
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ ", line) for line in lines)


def test_a_log_file_is_appended_to(tmp_path: Path) -> None:
    log = tmp_path / "smtpd.log"
    log.write_text("yesterday\n")
    ended = run(*LOCAL, "--log-to", "smtpd.log", "--tls-cert", "no.pem", cwd=tmp_path)
    assert ended.returncode == os.EX_CONFIG
    assert log.read_text().startswith("yesterday\n")


def test_log_to_stdout_writes_nothing_to_standard_error(tmp_path: Path) -> None:
    with logging_to("stdout", tmp_path) as process:
        assert process.stdout is not None
        try:
            assert any("serving, pid" in line for line in process.stdout)
        finally:
            process.terminate()
        rest, errors = process.communicate(timeout=PATIENCE)
    assert rest.endswith("INFO stopped\n")
    assert errors == ""


def test_every_connection_can_be_found_by_its_address_in_the_log(tmp_path: Path) -> None:
    with Daemon("-l", "127.0.0.1:0", cwd=tmp_path) as daemon, daemon.smtp() as client:
        assert client.sock is not None
        mine = client.sock.getsockname()
        client.sendmail("a@example.com", "b@example.com", "hello")
        daemon.wait_for(rf"queued: from=<a@example\.com> to=1 .* client=127\.0\.0\.1:{mine[1]}$")
