"""Process 1: it reaps orphans, leaves the daemon's exit statuses alone, and forwards signals."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest
from support.daemon import COMMAND, PATIENCE, Daemon, messages, on_both_loops, until
from support.peers import namespaces, proc

if TYPE_CHECKING:
    from pathlib import Path

CHILDREN = '''
import asyncio, os, subprocess, sys

ORPHANS = """
import os, time
for n in range(5):
    if not os.fork():
        if not os.fork():
            time.sleep(0.05)
        os._exit(0)
"""


class Handler:
    async def handle_DATA(self, server, session, envelope):
        # What it starts leaves orphans behind while statuses are waited for, in both ways.
        await (await asyncio.create_subprocess_exec(sys.executable, "-c", ORPHANS)).wait()
        statuses = []
        for status in range(20):
            child = await asyncio.create_subprocess_exec("sh", "-c", f"exit {status}")
            statuses.append(await child.wait())
            ended = await asyncio.to_thread(subprocess.run, ["sh", "-c", f"exit {status}"])
            statuses.append(ended.returncode)
        right = statuses == [n for n in range(20) for _ in range(2)]
        return f"250 {right}"
'''


@pytest.fixture
def first(tmp_path: Path) -> list[str]:
    """A command that runs another one as process 1 of a namespace; it is killed with its parent."""
    command = namespaces("--pid", "--fork", "--kill-child", "--mount-proc")
    (tmp_path / "children.py").write_text(CHILDREN)
    return command


def of(daemon: Daemon) -> tuple[int, int]:
    """Return process 1 and the daemon, with their ids outside the namespace."""
    (init,) = children(daemon.process.pid)
    until(lambda: children(init), "pid 1 has its child")
    return init, children(init)[0]


def children(pid: int) -> list[int]:
    return [int(n) for n in proc(pid, "task", pid, "children").read_text().split()]


def zombies(init: int) -> list[int]:
    return [n for n in children(init) if state(n) == "Z"]


def state(pid: int) -> str:
    try:
        return proc(pid, "stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


@on_both_loops
def test_orphans_are_reaped_and_exit_statuses_are_correct(
    tmp_path: Path, first: list[str], loop: str
) -> None:
    options = ("-l", "127.0.0.1:0", "--handler", "children:Handler", "--loop", loop)
    with Daemon(*options, cwd=tmp_path, command=[*first, *COMMAND]) as daemon:
        init, _ = of(daemon)
        for _ in range(3):
            with daemon.smtp() as client:
                client.ehlo()
                client.mail("a@example.com")
                client.rcpt("b@example.com")
                assert client.data("hello") == (250, b"True")
        until(lambda: len(children(init)) == 1, "the orphans are reaped")
        assert zombies(init) == []
        os.kill(init, signal.SIGTERM)
        assert daemon.process.wait(PATIENCE) == 0
        assert "Traceback" not in daemon.log


@on_both_loops
def test_signals_reach_the_daemon_and_it_stops_gracefully(
    tmp_path: Path, first: list[str], loop: str
) -> None:
    with Daemon(
        "-l", "127.0.0.1:0", "--loop", loop, cwd=tmp_path, command=[*first, *COMMAND]
    ) as daemon:
        init, _ = of(daemon)
        client = daemon.smtp()
        client.ehlo()
        client.mail("a@example.com")
        client.rcpt("b@example.com")
        client.docmd("DATA")
        os.kill(init, signal.SIGHUP)
        daemon.wait_for("configuration reloaded")
        os.kill(init, signal.SIGUSR2)
        daemon.wait_for("WARNING SIGUSR2: a container ends with its first process")
        os.kill(init, signal.SIGTERM)
        daemon.wait_for("stopping: 1 session open")
        client.send(b"Subject: in time\r\n\r\n.\r\n")
        assert client.getreply()[0] == 250
        client.close()
        assert daemon.process.wait(PATIENCE) == 0
    assert len(messages(tmp_path / "Maildir")) == 1


def test_pid_1_ends_with_the_status_of_the_daemon(tmp_path: Path, first: list[str]) -> None:
    with Daemon(
        "-l", "127.0.0.1:0", "--handler", "discard", cwd=tmp_path, command=[*first, *COMMAND]
    ) as daemon:
        _, pid = of(daemon)
        os.kill(pid, signal.SIGKILL)
        assert daemon.process.wait(PATIENCE) == 128 + signal.SIGKILL


def test_a_failed_start_prints_the_error_also_as_pid_1(tmp_path: Path, first: list[str]) -> None:
    ended = subprocess.run(
        [*first, *COMMAND, "-p", "many"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ended.returncode == os.EX_USAGE
    assert re.fullmatch(r"smtpd-fork: --port 'many': .*\n|smtpd-fork: .*many.*\n", ended.stderr)
