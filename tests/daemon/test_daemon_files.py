"""Files of a daemon: its pid-file and its unix socket, also with a second daemon."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest
from support.daemon import LOCAL, PATIENCE, Daemon, Detached, run, until
from support.dialogue import begin_data, last_word

if TYPE_CHECKING:
    from pathlib import Path

# -- the pid-file ------------------------------------------------------------------------------


def test_the_pid_file_contains_the_pid_and_a_line_end(tmp_path: Path) -> None:
    with Daemon(*LOCAL, "--pid-file", "daemon.pid", cwd=tmp_path) as daemon:
        assert (tmp_path / "daemon.pid").read_bytes() == b"%d\n" % daemon.process.pid


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_pid_file_is_removed_at_the_end(tmp_path: Path, number: signal.Signals) -> None:
    with Daemon(*LOCAL, "--pid-file", "daemon.pid", cwd=tmp_path) as daemon:
        assert daemon.stop(number) == 0
    assert not (tmp_path / "daemon.pid").exists()


def test_a_second_daemon_with_the_same_pid_file_does_not_start(tmp_path: Path) -> None:
    with Detached(*LOCAL, "--pid-file", "daemon.pid", cwd=tmp_path) as daemon:
        for detach in ((), ("--detach",)):
            second = run(*LOCAL, "--pid-file", "daemon.pid", *detach, cwd=tmp_path)
            assert second.returncode == os.EX_CANTCREAT
            assert second.stderr == (
                f"smtpd-fork: cannot lock the pid file {tmp_path}/daemon.pid: a running process "
                f"has locked it (pid {daemon.pid}) (from --pid-file)\n"
            )
        assert (tmp_path / "daemon.pid").read_text() == f"{daemon.pid}\n"


@pytest.mark.parametrize("whose", ["dead", "ours", "init", "garbage"])
def test_an_unlocked_pid_file_does_not_prevent_a_start(tmp_path: Path, whose: str) -> None:
    with subprocess.Popen(["/bin/true"]) as ended:
        pass
    texts = {"dead": ended.pid, "ours": os.getpid(), "init": 1, "garbage": "what is this"}
    (tmp_path / "daemon.pid").write_text(f"{texts[whose]}\n")
    with Daemon(*LOCAL, "--pid-file", "daemon.pid", cwd=tmp_path) as daemon:
        assert (tmp_path / "daemon.pid").read_text() == f"{daemon.process.pid}\n"


def test_the_pid_file_of_a_killed_daemon_does_not_prevent_a_start(tmp_path: Path) -> None:
    options = ("-l", "unix:smtp.sock", "--handler", "discard", "--pid-file", "daemon.pid")
    with Daemon(*options, cwd=tmp_path) as first:
        first.stop(signal.SIGKILL)
    assert (tmp_path / "daemon.pid").exists()
    with Daemon(*options, cwd=tmp_path) as second:
        assert (tmp_path / "daemon.pid").read_text() == f"{second.process.pid}\n"
        assert second.stop() == 0
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_replaced_the_pid_file_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "daemon.pid"
    with Daemon(*LOCAL, "--pid-file", str(path), cwd=tmp_path) as daemon:
        path.unlink()
        path.write_text("somebody else's\n")
        assert daemon.stop() == 0
    assert path.read_text() == "somebody else's\n"


def test_a_pid_file_that_is_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "daemon.pid").symlink_to("precious")
    ended = run(*LOCAL, "--pid-file", "daemon.pid", cwd=tmp_path)
    assert ended.returncode == os.EX_CANTCREAT
    assert "daemon.pid" in ended.stderr
    assert (tmp_path / "precious").read_text() == "precious"


# -- unix sockets of two daemons ---------------------------------------------------------------


def test_a_stopping_daemon_does_not_remove_the_socket_of_the_next_one(
    tmp_path: Path,
) -> None:
    """While old sessions end, the path of the old socket and its inode number can be used again."""
    path = tmp_path / "smtp.sock"
    options = ("-l", f"unix:{path}", "--handler", "discard")
    with Daemon("-l", "127.0.0.1:0", *options, cwd=tmp_path) as old, old.smtp() as client:
        begin_data(client)
        old.signal(signal.SIGTERM)
        until(lambda: not path.exists(), "the old socket's path is removed")
        with Daemon(*options, cwd=tmp_path) as new:
            client.send(b"\r\n.\r\n")
            assert client.getreply()[0] == 250
            assert last_word(client) == (421, b"4.3.2")
            assert old.process.wait(PATIENCE) == 0
            assert path.exists()
            with socket.socket(socket.AF_UNIX) as other:
                other.connect(str(path))
            assert new.stop() == 0
