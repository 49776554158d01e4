"""--processes: the start, the restarts and the end of a supervisor's processes."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from support.control import CONTROL, ask, says
from support.daemon import (
    PATIENCE,
    Daemon,
    Detached,
    Process,
    is_alive,
    on_both_loops,
    run,
    until,
    wait_until_gone,
)
from support.place import only_line
from support.supervised import TWO, children, pids

from smtpd_fork.errors import ExitStatus

if TYPE_CHECKING:
    from pathlib import Path

# -- start and end -----------------------------------------------------------------------------


@on_both_loops
def test_the_supervisor_has_pid_file_and_paths_and_its_processes_serve(
    tmp_path: Path, loop: str
) -> None:
    pid_file, path = tmp_path / "daemon.pid", tmp_path / "smtp.sock"
    options = (*TWO, "-l", f"unix:{path}", "--pid-file", str(pid_file), "--loop", loop, *CONTROL)
    with Daemon(*options, cwd=tmp_path) as daemon:
        ours = children(daemon)
        assert pid_file.read_text() == f"{daemon.process.pid}\n"
        assert {Process(pid).parent for pid in ours} == {daemon.process.pid}
        daemon.deliver()
        assert f"pid {daemon.process.pid}" in says(tmp_path, "status")
        assert all(f"smtpd-fork[{pid}]: INFO" in daemon.log for pid in ours)
        assert daemon.stop() == 0
        assert not pid_file.exists()
        assert not path.exists()
        assert not any(map(is_alive, ours))


def test_the_exit_status_reports_a_session_that_was_cut_off(tmp_path: Path) -> None:
    with Daemon(*TWO, "--shutdown-timeout", "0", cwd=tmp_path) as daemon:
        client = daemon.smtp()
        client.ehlo()
        client.mail("a@example.com")
        client.rcpt("b@example.com")
        client.putcmd("data")
        assert client.getreply()[0] == 354
        assert daemon.stop() == ExitStatus.FORCED
        client.close()


def test_the_start_fails_with_the_error_of_a_process_that_cannot_start(tmp_path: Path) -> None:
    options = ("-l", "127.0.0.1:0", "--processes", "2", "--handler", "nowhere:Handler")
    ended = run(*options, cwd=tmp_path)
    assert ended.returncode == ExitStatus.CONFIG
    assert "nowhere" in only_line(ended)
    alone = run("-l", "127.0.0.1:0", "--handler", "nowhere:Handler", cwd=tmp_path)
    assert only_line(ended) == only_line(alone)
    detached = run(*options, "--detach", "--log-to", "log", cwd=tmp_path)
    assert detached.returncode == ExitStatus.CONFIG
    assert only_line(detached) == only_line(alone)


def test_the_supervisor_detaches_once_all_processes_serve(tmp_path: Path) -> None:
    options = ("-l", "127.0.0.1:0", "--processes", "2", "--handler", "maildir:box")
    with Detached(*options, "--pid-file", "pid", cwd=tmp_path) as daemon:
        until(lambda: len(pids(daemon.text)) == 2, "the log is written")
        ours = pids(daemon.text)
        assert (tmp_path / "pid").read_text() == f"{daemon.pid}\n"
        assert {Process(pid).folder for pid in (*ours, daemon.pid)} == {"/"}
        with daemon.smtp() as client:
            client.sendmail("a@example.com", ["b@example.com"], "Subject: hi\r\n\r\nhello\r\n")
        assert len(list((tmp_path / "box" / "new").iterdir())) == 1
        daemon.stop()
        until(lambda: not any(map(is_alive, ours)), "they have ended")


def test_all_processes_drop_privileges(public: Path, command_for_nobody: list[str]) -> None:
    options = (*TWO, "--user", "nobody")
    with Daemon(*options, cwd=public, command=command_for_nobody) as daemon:
        found = [Process(pid).status["Uid"][0] for pid in (*children(daemon), daemon.process.pid)]
        assert len(set(found)) == 1
        assert found[0] != "0"
        os.kill(children(daemon)[0], signal.SIGKILL)
        assert Process(children(daemon, 3)[2]).status["Uid"][0] == found[0]


# -- replacement -------------------------------------------------------------------------------


def test_a_killed_process_is_restarted_and_no_other_client_is_affected(tmp_path: Path) -> None:
    with Daemon(*TWO, "-c", "2", *CONTROL, cwd=tmp_path) as daemon:
        first, second = children(daemon)
        inside = [daemon.smtp(), daemon.smtp()]
        address = ("127.0.0.1", daemon.port)
        waiting = [socket.create_connection(address, timeout=PATIENCE) for _ in range(4)]
        says(tmp_path, "deny", "192.0.2.0/24")
        os.kill(first, signal.SIGKILL)
        daemon.wait_for(rf"process 1 \(pid {first}\) ended by SIGKILL: starting another one")
        lost = 0
        for client in inside:
            try:
                assert client.noop()[0] == 250
            except (OSError, EOFError):
                lost += 1
            client.close()
        assert lost <= 1, "those of the other process stay"
        third = children(daemon, 3)[2]
        assert ask(tmp_path, "denials")["denials"][0]["network"] == "192.0.2.0/24"
        os.kill(second, signal.SIGKILL)
        for sock in waiting:
            assert sock.recv(4) == b"220 ", "no connection in the backlog was reset"
            sock.close()
        assert is_alive(third)


@pytest.mark.peers
def test_a_process_that_keeps_crashing_is_restarted_at_growing_intervals(tmp_path: Path) -> None:
    (tmp_path / "crashing.py").write_text(CRASHING)
    options = ("-l", "127.0.0.1:0", "--processes", "2", "--handler", "crashing:Handler")
    with Daemon(*options, cwd=tmp_path) as daemon:
        (tmp_path / "crash").touch()
        os.kill(children(daemon)[0], signal.SIGKILL)
        daemon.wait_for(r"process 1 cannot start: .*no more .*; trying again in 0.2 s")
        daemon.wait_for(r"process 1 cannot start: .*no more .*; trying again in 0.4 s")
        daemon.deliver()
        (tmp_path / "crash").unlink()
        children(daemon, 3)


def test_a_process_that_starts_during_a_reload_gets_the_new_settings(tmp_path: Path) -> None:
    config = tmp_path / "conf.toml"
    config.write_text('hostname = "old.example.com"\n')
    (tmp_path / "slow.py").write_text(SLOW)
    options = (*TWO[:2], "--processes", "2", "--handler", "slow:Handler", "-c", "2", *CONTROL)
    with Daemon(*options, "--config", str(config), cwd=tmp_path) as daemon:
        (tmp_path / "wait").touch()
        os.kill(children(daemon)[0], signal.SIGKILL)
        until((tmp_path / "starts").exists, "another one starts")
        config.write_text('hostname = "new.example.com"\n')
        says(tmp_path, "reload")
        (tmp_path / "wait").unlink()
        another = children(daemon, 3)[2]
        daemon.wait_for(rf"\[{another}\]: INFO .*hostname old.example.com -> new.example.com")
        daemon.deliver()


CRASHING = """
import os

if os.path.exists("crash"):
    raise ValueError("no more")


class Handler:
    async def handle_DATA(self, server, session, envelope):
        return "250 taken"
"""


def test_processes_end_with_their_last_session_after_their_supervisor_was_killed(
    tmp_path: Path,
) -> None:
    with Daemon(*TWO, "--greet-pause", "1s", *CONTROL, cwd=tmp_path) as daemon:
        ours = children(daemon)
        client = daemon.smtp()
        with socket.create_connection(("127.0.0.1", daemon.port), timeout=PATIENCE) as waiting:
            until(lambda: ask(tmp_path, "status")["sessions"] == 2, "it is accepted")
            daemon.process.kill()
            daemon.wait_for("the supervisor has ended: draining")
            assert waiting.recv(4) == b"220 "
        assert client.noop()[0] == 250
        client.quit()
        for pid in ours:
            wait_until_gone(pid)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", daemon.port))


@pytest.mark.peers
def test_a_process_whose_event_loop_hangs_is_killed_and_restarted(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from smtpd_fork.cli import main\n"
        "from smtpd_fork.supervisor import serving_process\n"
        "serving_process.PING_SECONDS = serving_process.STUCK_SECONDS = 0.5\n"
        "sys.exit(main())\n"
    )
    with Daemon(*TWO, cwd=tmp_path, command=[sys.executable, "-c", script]) as daemon:
        first = children(daemon)[0]
        os.kill(first, signal.SIGSTOP)
        daemon.wait_for(rf"process 1 \(pid {first}\) has not answered for 0.5 s: killed")
        children(daemon, 3)
        daemon.deliver()


def test_new_clients_wait_for_a_supervisor_that_is_late(tmp_path: Path) -> None:
    """Otherwise each process would admit as many of a client as all processes together."""
    with Daemon(*TWO, "-m", "2", cwd=tmp_path) as daemon, ExitStack() as stack:

        def connect() -> socket.socket:
            address = ("127.0.0.1", daemon.port)
            return stack.enter_context(socket.create_connection(address, PATIENCE))

        assert [connect().recv(4) for _ in range(2)] == [b"220 "] * 2
        os.kill(daemon.process.pid, signal.SIGSTOP)
        try:
            late = [connect() for _ in range(6)]
            time.sleep(0.5)  # longer than a process would wait for Redis
        finally:
            os.kill(daemon.process.pid, signal.SIGCONT)
        assert [each.recv(4) for each in late] == [b"421 "] * 6


def test_a_stop_ends_a_process_that_is_being_started(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    options = ("-l", "127.0.0.1:0", "--processes", "2", "--handler", "slow:Handler")
    with Daemon(*options, cwd=tmp_path) as daemon:
        (tmp_path / "wait").touch()
        os.kill(children(daemon)[0], signal.SIGKILL)
        until((tmp_path / "starts").exists, "another one starts")
        assert daemon.stop() == 0
        assert not is_alive(int((tmp_path / "starts").read_text()))


SLOW = """
import os
import pathlib
import time

if os.path.exists("wait"):
    pathlib.Path("new").write_text(str(os.getpid()))
    os.rename("new", "starts")
    while os.path.exists("wait"):
        time.sleep(0.01)


class Handler:
    async def handle_DATA(self, server, session, envelope):
        return "250 taken"
"""
