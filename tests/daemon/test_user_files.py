"""Files of a daemon that drops privileges: its log, and a library that the user cannot read."""

from __future__ import annotations

import os
import signal
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.daemon import COMMAND, run, until, wait_until_gone
from support.peers import cannot, needs_root
from support.place import only_line

if TYPE_CHECKING:
    from collections.abc import Iterator

NOBODY = 65534


def pid_of(path: Path) -> int:
    return int(path.read_text() or 0)


@pytest.fixture
def stopped_after(public: Path) -> Iterator[Path]:
    """The path of a pid-file; its daemon is ended after the test."""
    pid_file = public / "daemon.pid"
    yield pid_file
    if pid_file.exists() and (pid := pid_of(pid_file)):
        os.kill(pid, signal.SIGTERM)
        wait_until_gone(pid)


def test_the_command_of_the_readme_can_reload_and_upgrade_with_a_log_of_the_user(
    public: Path, command_for_nobody: list[str], stopped_after: Path
) -> None:
    """As root with --user, --detach, --pid-file, and --log-to in a directory of root."""
    spool, logs = public / "mail", public / "log"
    spool.mkdir()
    os.chown(spool, NOBODY, NOBODY)
    logs.mkdir(0o755)
    log, pid_file = logs / "smtpd-fork.log", stopped_after
    options = (
        *("-l", "127.0.0.1:0", "-u", "nobody", "-d", "--pid-file", str(pid_file)),
        *("--handler", f"maildir:{spool}/in"),
    )
    environment = {"SMTPD_FORK_LOG_TO": str(log)}
    ended = run(*options, cwd=public, command=command_for_nobody, environment=environment)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    found = log.stat()
    assert (found.st_uid, found.st_gid) == (NOBODY, NOBODY)
    assert stat.S_IMODE(found.st_mode) == 0o640
    first = pid_of(pid_file)
    os.kill(first, signal.SIGHUP)
    until(lambda: "configuration reloaded" in log.read_text(), "the reload")
    os.kill(first, signal.SIGUSR2)
    until(lambda: pid_of(pid_file) not in {0, first}, "the new process")
    wait_until_gone(first)
    os.kill(pid_of(pid_file), signal.SIGHUP)
    until(lambda: log.read_text().count("configuration reloaded") == 2, "the next reload")
    assert "ERROR" not in log.read_text()


def unreadable_python() -> list[str]:
    """Return a command whose Python the user `nobody` cannot read; skip if there is none."""
    needs_root()
    parents = Path(sys.executable).resolve().parents
    if all(parent.stat().st_mode & stat.S_IXOTH for parent in parents):
        cannot("every user can read this Python")
    return COMMAND


def test_a_library_that_the_user_cannot_read_is_imported_before_privileges_are_dropped(
    public: Path, stopped_after: Path
) -> None:
    options = (
        *("-l", "127.0.0.1:0", "-u", "nobody", "-d", "--pid-file", str(stopped_after)),
        *("--metrics", "127.0.0.1:0", "--dnsbl", "x.invalid", "--dns-server", "127.0.0.1:9"),
        *("--handler", "discard", "--log-to", "log"),
    )
    ended = run(*options, cwd=public, command=unreadable_python())
    assert (ended.returncode, ended.stderr) == (0, "")
    log = (public / "log").read_text()
    assert "WARNING an upgrade (SIGUSR2) will fail: user nobody cannot read /" in log
    assert "ImportError" not in log
    assert "ModuleNotFoundError" not in log
    checked = run("check", *options[:4], "--handler", "discard", cwd=public, command=COMMAND)
    assert "warning: an upgrade (SIGUSR2) will fail: user nobody cannot read /" in checked.stdout
    assert checked.returncode == 0


@pytest.mark.parametrize("detach", [(), ("-d",)], ids=["foreground", "detached"])
def test_an_import_error_after_privileges_are_dropped_is_one_line_with_its_status(
    public: Path, detach: tuple[str, ...]
) -> None:
    command = unreadable_python()
    (public / "late.py").write_text(
        "class Late:\n"
        "    async def handle_DATA(self, server, session, envelope):\n"
        "        return '250 Ok'\n\n\n"
        "from smtpd_fork.server import Server\n\n\n"
        "async def start(self, *, accept=True):\n"
        "    import xml.dom.minidom\n\n\n"
        "Server.start = start\n"
    )
    options = ("-l", "127.0.0.1:0", "-u", "nobody", "--handler", "late:Late", "--log-to", "log")
    ended = run(*options, *detach, cwd=public, command=command)
    assert ended.returncode == os.EX_SOFTWARE
    line = only_line(ended)
    assert "the daemon exited during startup (status 70): ModuleNotFoundError: " in line
    assert "user nobody cannot read /" in line
    assert "(Python's library); traceback in the log" in line
    assert "Traceback (most recent call last)" in (public / "log").read_text()
