"""Detaching: the daemon is independent of the terminal, the directory and its parent process."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.daemon import (
    COMMAND,
    LOCAL,
    PATIENCE,
    Detached,
    Process,
    clean_environment,
    is_alive,
    messages,
    on_both_loops,
    run,
    wait_until_gone,
)
from support.dialogue import is_refused, last_word
from support.peers import needs_terminals, peer

from smtpd_fork.cli.start import NO_SYSLOG
from smtpd_fork.observe.logs.setup import SYSLOG

if TYPE_CHECKING:
    from support.tls import Certificates


def test_detach_returns_when_the_daemon_serves(tmp_path: Path) -> None:
    with Detached(*LOCAL, cwd=tmp_path) as daemon, daemon.smtp() as client:
        assert client.noop()[0] == 250


def test_detach_prints_only_warnings(tmp_path: Path) -> None:
    with Detached(*LOCAL, cwd=tmp_path) as daemon:
        assert daemon.ended.stderr == ""


def test_detach_without_log_to_uses_syslog_or_warns_that_there_is_none(
    tmp_path: Path,
) -> None:
    ended = run(*LOCAL, "--detach", "--pid-file", "daemon.pid", cwd=tmp_path)
    pid = int((tmp_path / "daemon.pid").read_text())
    os.kill(pid, signal.SIGTERM)
    wait_until_gone(pid)
    warning = "" if Path(SYSLOG).is_socket() else f"{NO_SYSLOG}\n"
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", warning)


def test_a_detached_daemon_is_independent_of_the_process_that_started_it(tmp_path: Path) -> None:
    with Detached(*LOCAL, cwd=tmp_path) as daemon:
        process = Process(daemon.pid)
        assert process.parent != os.getpid()
        assert process.session != os.getsid(0)
        assert process.terminal == 0
        assert process.session != daemon.pid, "the leader of a session could get a terminal"
        assert process.folder == "/"
        assert [process.descriptor(number) for number in (0, 1, 2)] == ["/dev/null"] * 3
        assert process.status["Umask"] == ["0022"]


def test_a_detached_daemon_survives_the_end_of_its_terminal(tmp_path: Path) -> None:
    needs_terminals()
    options = (*LOCAL, "--detach", "--log-to", str(tmp_path / "log"), "--pid-file", "daemon.pid")
    subprocess.run(
        [peer("script"), "-qec", " ".join([*COMMAND, *options]), "/dev/null"],
        cwd=tmp_path,
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        check=True,
        timeout=PATIENCE,
    )
    pid = int((tmp_path / "daemon.pid").read_text())
    try:
        assert is_alive(pid)
        assert Process(pid).terminal == 0
    finally:
        os.kill(pid, signal.SIGTERM)
        wait_until_gone(pid)
    assert "SIGHUP" not in (tmp_path / "log").read_text()


@pytest.mark.parametrize("closed", ["<&-", "<&- >&-", "<&- >&- 2>&-"])
def test_detach_works_if_standard_streams_are_closed(tmp_path: Path, closed: str) -> None:
    """Some supervisors start programs that way: a socket must not become descriptor 0, 1 or 2."""
    command = ["/bin/sh", "-c", f'exec "$@" {closed}', "sh", *COMMAND]
    with Detached(*LOCAL, cwd=tmp_path, command=command) as daemon, daemon.smtp() as client:
        assert client.noop()[0] == 250


def test_relative_paths_refer_to_the_directory_of_the_start(
    tmp_path: Path, certificates: Certificates
) -> None:
    shutil.copy(certificates.cert, tmp_path / "cert.pem")
    shutil.copy(certificates.key, tmp_path / "key.pem")
    hook = "    async def handle_QUIT(self, server, session, envelope):\n        return '221 Bye'\n"
    (tmp_path / "own.py").write_text(f"class Handler:\n{hook}")
    with Detached(
        *("-l", "127.0.0.1:0", "-l", "unix:smtp.sock", "--pid-file", "daemon.pid"),
        *("--handler", "own:Handler", "--handler", "maildir:in/box"),
        *("--tls-cert", "cert.pem", "--tls-key", "key.pem"),
        cwd=tmp_path,
    ) as daemon:
        assert (tmp_path / "daemon.pid").read_text() == f"{daemon.pid}\n"
        assert stat.S_ISSOCK((tmp_path / "smtp.sock").stat().st_mode)
        with daemon.smtp() as client:
            client.starttls(context=certificates.client)
            client.sendmail("a@example.com", ["b@example.com"], "hello")
        assert len(messages(tmp_path / "in/box")) == 1
        daemon.stop()
    assert daemon.text.splitlines()[-1].endswith("INFO stopped")
    assert not (tmp_path / "daemon.pid").exists()
    assert not (tmp_path / "smtp.sock").exists()


def test_a_detached_daemon_delivers_to_the_default_maildir(tmp_path: Path) -> None:
    with Detached("-l", "127.0.0.1:0", cwd=tmp_path) as daemon:
        with daemon.smtp() as client:
            client.sendmail("a@example.com", ["b@example.com"], "hello")
        assert len(messages(tmp_path / "Maildir")) == 1


@on_both_loops
def test_a_detached_daemon_shuts_down_gracefully(tmp_path: Path, loop: str) -> None:
    with Detached(*LOCAL, "--loop", loop, cwd=tmp_path) as daemon:
        idle = daemon.smtp()
        os.kill(daemon.pid, signal.SIGTERM)
        assert last_word(idle) == (421, b"4.3.2")
        wait_until_gone(daemon.pid)
        assert is_refused(daemon.port)
