"""status --watch: on a terminal, in a pipe, until Ctrl-C, and until the daemon ends."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from support.control import CONTROL, connect
from support.daemon import COMMAND, LOCAL, PATIENCE, Daemon, clean_environment, end
from support.peers import needs_terminals

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WATCH = [*COMMAND, "status", "--watch", *CONTROL]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with Daemon(*LOCAL, *CONTROL, cwd=tmp_path) as running:
        yield running
        assert "Traceback" not in running.log


class Terminal:
    """A process with its own terminal."""

    def __init__(self, arguments: list[str], cwd: Path) -> None:
        needs_terminals()
        self.ours, its = pty.openpty()
        self.text = ""
        self.process = subprocess.Popen(
            arguments,
            cwd=cwd,
            env=clean_environment(TERM="xterm", COLUMNS="100", LINES="40"),
            stdin=its, stdout=its, stderr=its,
            start_new_session=True,
            preexec_fn=None,
        )  # fmt: skip
        os.close(its)

    def wait_for(self, pattern: str, *, since: int = 0) -> None:
        deadline = time.monotonic() + PATIENCE
        while not re.search(pattern, self.text[since:]):
            assert time.monotonic() < deadline, f"no {pattern!r} in {self.text[-900:]!r}"
            if not self._read():
                break
        assert re.search(pattern, self.text[since:]), self.text

    def _read(self) -> bool:
        if not select.select([self.ours], [], [], PATIENCE)[0]:
            return False
        try:
            data = os.read(self.ours, 1 << 16)
        except OSError:  # EIO: no process has the terminal open any more
            return False
        self.text += data.decode()
        return bool(data)

    def end(self) -> int:
        while self._read():
            pass
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        end(self.process)
        os.close(self.ours)


@pytest.fixture
def terminal(daemon: Daemon, tmp_path: Path) -> Iterator[Terminal]:
    terminal = Terminal(WATCH, tmp_path)
    yield terminal
    terminal.close()


def test_a_terminal_shows_a_live_table(daemon: Daemon, terminal: Terminal) -> None:
    terminal.wait_for(r"(?s)serving.*sessions\s+│\s+0 of 1000")
    with daemon.smtp() as client:
        seen = len(terminal.text)
        terminal.wait_for(r"sessions\s+│\s+1 of 1000", since=seen)
        terminal.wait_for(r"command\s+│\s+1", since=seen)
        terminal.wait_for(r"127\.0\.0\.1\s+│\s+1", since=seen)
        client.quit()
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.end() == 0
    assert "Traceback" not in terminal.text
    assert terminal.text.rindex("\x1b[?25h") > terminal.text.rindex("\x1b[?25l")  # its cursor


def test_the_terminal_is_restored_when_the_daemon_ends(daemon: Daemon, terminal: Terminal) -> None:
    terminal.wait_for("serving")
    assert daemon.stop() == 0
    assert terminal.end() == os.EX_UNAVAILABLE
    assert terminal.text.rstrip().endswith("has ended")
    assert terminal.text.rindex("\x1b[?25h") > terminal.text.rindex("\x1b[?25l")


@pytest.mark.parametrize("number", [signal.SIGINT, None], ids=["Ctrl-C", "daemon gone"])
def test_a_pipe_gets_one_line_per_interval(
    daemon: Daemon, tmp_path: Path, number: signal.Signals | None
) -> None:
    with piped(WATCH, tmp_path) as process:
        assert process.stdout is not None
        for _ in range(2):
            text = process.stdout.readline()
            assert re.fullmatch(
                r"\d{4}-\d\d-\d\d [\d:]{8} serving 0/1000 sessions, 0 clients, "
                r"admitted 0 \(\+0\), refused 0 \(\+0\)\n",
                text,
            )
        if number is None:
            daemon.stop()
        else:
            process.send_signal(number)
        rest, complaint = process.communicate(timeout=PATIENCE)
        assert "\x1b" not in rest
        if number is None:
            assert process.returncode == os.EX_UNAVAILABLE
            assert complaint.endswith("has ended\n")
        else:
            assert (process.returncode, complaint) == (0, "")


def piped(arguments: list[str], cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        arguments,
        cwd=cwd,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_json_output_is_one_object_per_line(daemon: Daemon, tmp_path: Path) -> None:
    with piped([*WATCH, "--json"], tmp_path) as process:
        assert process.stdout is not None
        told = [json.loads(process.stdout.readline()) for _ in range(2)]
        assert [each["pid"] for each in told] == [daemon.process.pid] * 2
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0


def test_without_rich_a_terminal_shows_how_to_install_it(daemon: Daemon, tmp_path: Path) -> None:
    without = "import sys; sys.modules['rich'] = None; sys.modules['rich.live'] = None; "
    script = f"{without}from smtpd_fork.cli import main; sys.exit(main())"
    words = ["status", "--watch", *CONTROL]
    terminal = Terminal([sys.executable, "-c", script, *words], tmp_path)
    try:
        assert terminal.end() == os.EX_CONFIG
        assert "pip install 'smtpd-fork[cli]'" in terminal.text
        assert terminal.text.count("\n") == 1
    finally:
        terminal.close()
    with piped([sys.executable, "-c", script, *words], tmp_path) as process:
        assert process.stdout is not None
        assert "serving" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0


def test_the_watch_ends_when_its_connection_is_closed(daemon: Daemon, tmp_path: Path) -> None:
    with piped(WATCH, tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.kill()
    with connect(tmp_path) as sock:
        sock.sendall(b'{"v":1,"command":"status"}\n')
        assert sock.recv(10)
