"""Upgrade: SIGUSR2 starts a new process that serves on the same sockets, without interruption."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from support.client import Client
from support.daemon import (
    LOCAL,
    PATIENCE,
    Daemon,
    Detached,
    Process,
    messages,
    on_both_loops,
    run,
    until,
    wait_until_gone,
)
from support.dialogue import begin_data, last_word
from support.page import read
from support.peers import proc
from support.place import only_line
from support.ports import free_ports
from support.server import serve
from support.server import until as until_here
from support.upgrades import TAKEN, Load, Successors

from smtpd_fork.cli import serve as serve_module
from smtpd_fork.cli import upgrade
from smtpd_fork.errors import ExitStatus, OperatingSystemError
from smtpd_fork.sinks import Discard

# -- continuity of service ---------------------------------------------------------------------


@on_both_loops
def test_the_new_process_gets_sockets_and_pid_file_and_sessions_continue(
    tmp_path: Path, loop: str
) -> None:
    path, pid_file = tmp_path / "smtp.sock", tmp_path / "daemon.pid"
    options = (*LOCAL, "-l", f"unix:{path}", "--pid-file", str(pid_file), "--loop", loop)
    with Daemon(*options, cwd=tmp_path) as daemon, Successors(daemon) as successors:
        places = daemon.places
        inode = path.stat().st_ino
        client = daemon.smtp()
        begin_data(client)
        idle = daemon.smtp()
        new = successors.upgrade()
        assert pid_file.read_text() == f"{new}\n"
        client.send(b" a line\r\n.\r\n")
        assert client.getreply()[0] == 250
        assert idle.noop()[0] == 250, "the session continues"
        assert daemon.process.poll() is None
        client.quit()
        idle.quit()
        assert daemon.process.wait(PATIENCE) == 0
        daemon.deliver()
        with socket.socket(socket.AF_UNIX) as unix:
            unix.connect(str(path))
            assert unix.recv(4) == b"220 "
        assert path.stat().st_ino == inode
        assert daemon.places == places * 2
        again = run(*options, cwd=tmp_path)
        assert again.returncode == ExitStatus.OS_ERROR, "the path is served"
        locked = run(*LOCAL, "--pid-file", str(pid_file), cwd=tmp_path)
        assert f"a running process has locked it (pid {new})" in only_line(locked)
        os.kill(new, signal.SIGTERM)
        wait_until_gone(new)
        assert not path.exists()
        assert not pid_file.exists()


@on_both_loops
def test_under_load_no_message_is_lost_and_no_connection_refused(tmp_path: Path, loop: str) -> None:
    (tmp_path / "counting.py").write_text(COUNTING)
    taken = tmp_path / "taken"
    options = ("-l", "127.0.0.1:0", "-m", "0", "--handler", "counting:Handler", "--loop", loop)
    with Daemon(*options, cwd=tmp_path) as daemon:
        with Load(daemon.port) as load, Successors(daemon) as successors:
            for _ in range(4):
                before = len(lines(taken))
                until(lambda least=before + 200: len(lines(taken)) >= least, "mail arrives")  # type: ignore[misc]
                successors.upgrade()
            load.finish()
        assert load.faults == []
        assert len(lines(taken)) == load.sent > 800
        assert len(set(lines(taken))) == 5, "each process accepted messages"
        assert "Traceback" not in daemon.log
        assert not re.search(r"WARNING refused|ERROR", daemon.log)


COUNTING = """
import os

log = os.open("taken", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


class Handler:
    async def handle_DATA(self, server, session, envelope):
        os.write(log, b"%d\\n" % os.getpid())
        return "250 taken"
"""


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


@on_both_loops
def test_the_new_process_admits_the_clients_in_the_backlog(tmp_path: Path, loop: str) -> None:
    with (
        Daemon(*LOCAL, "-c", "2", "--loop", loop, cwd=tmp_path) as daemon,
        Successors(daemon) as successors,
    ):
        inside = [daemon.smtp(), daemon.smtp()]
        address = ("127.0.0.1", daemon.port)
        waiting = [socket.create_connection(address, timeout=PATIENCE) for _ in range(2)]
        daemon.wait_for("clients wait in the backlog")
        successors.upgrade()
        for sock in waiting:
            assert sock.recv(4) == b"220 "
            sock.close()
        for client in inside:
            assert client.noop()[0] == 250
            client.quit()
        assert daemon.process.wait(PATIENCE) == 0


def test_clients_that_wait_in_the_old_process_get_a_slot_there(tmp_path: Path) -> None:
    proc()  # before the old process has sessions to close
    options = (*LOCAL, "-c", "1", "--when-full", "defer:60")
    with Daemon(*options, cwd=tmp_path) as daemon, Successors(daemon) as successors:
        inside = daemon.smtp()
        address = ("127.0.0.1", daemon.port)
        with socket.create_connection(address, timeout=PATIENCE) as waiting:
            until(lambda: accepted(daemon.process.pid) == 2, "it is accepted, and waits")
            successors.upgrade()
            inside.quit()
            assert waiting.recv(4) == b"220 "
            waiting.sendall(b"QUIT\r\n")
        assert daemon.process.wait(PATIENCE) == 0


def accepted(pid: int) -> int:
    """Return the number of open TCP connections of a process."""
    found = {os.readlink(entry) for entry in proc(pid, "fd").iterdir()}
    established = [
        line.split()[9]
        for line in proc(pid, "net/tcp").read_text().splitlines()[1:]
        if line.split()[3] == "01"
    ]
    return sum(f"socket:[{inode}]" in found for inode in established)


def test_a_draining_old_process_can_still_be_stopped(tmp_path: Path) -> None:
    with Daemon(*LOCAL, cwd=tmp_path) as daemon, Successors(daemon) as successors:
        idle = daemon.smtp()
        successors.upgrade()
        daemon.signal(signal.SIGUSR2)
        daemon.wait_for("WARNING SIGUSR2: a new process has replaced this one already")
        daemon.signal(signal.SIGTERM)
        assert last_word(idle) == (421, b"4.3.2")
        assert daemon.process.wait(PATIENCE) == 0
        daemon.deliver()


def test_the_new_process_has_new_settings_and_addresses(tmp_path: Path) -> None:
    """The command line is the same; the settings that it reads (here by a wrapper) may differ."""
    stays, goes, comes = free_ports(3)
    settings = tmp_path / "settings"

    def listen_on(*ports: int, more: str = "") -> None:
        settings.write_text(" ".join(f"127.0.0.1:{port}" for port in ports) + more)

    script = (
        "import os, pathlib, sys\n"
        "from smtpd_fork.cli import main\n"
        "os.environ['SMTPD_FORK_LISTEN_ADDRESS'] = pathlib.Path('settings').read_text()\n"
        "sys.exit(main())\n"
    )
    command = [sys.executable, "-c", script]
    listen_on(stays, goes, more=" unix:goes.sock")
    with (
        Daemon("--handler", "discard", cwd=tmp_path, command=command) as daemon,
        Successors(daemon) as successors,
    ):
        listen_on(stays, comes)
        successors.upgrade()
        assert daemon.process.wait(PATIENCE) == 0
        for port in (stays, comes):
            with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
                assert client.recv(4) == b"220 "
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", goes), timeout=PATIENCE)
        assert not (tmp_path / "goes.sock").exists()


async def test_a_withdrawn_server_serves_accepted_clients_and_leaves_after_them() -> None:
    sock = socket.create_server(("127.0.0.1", 0))
    options: dict[str, Any] = {"sockets": [sock.dup()], "greet_pause": 0.2}
    async with serve(Discard(), **options) as server:
        async with await Client.to(sock.getsockname()) as client:
            await until_here(lambda: server.gate.count == 1)
            server.withdraw()
            leaving = asyncio.ensure_future(server.leave())
            async with await Client.to(sock.getsockname()) as late:
                assert (await client.greet()).code == 250
                assert (await client.deliver()).code == 250
                assert not leaving.done()
                assert server.gate.count == 1, "this server does not accept the late client"
                await client.say("QUIT")
                await leaving
                late.reset()
    sock.close()


async def test_a_resting_server_can_accept_again() -> None:
    sock = socket.create_server(("127.0.0.1", 0))
    options: dict[str, Any] = {"sockets": [sock.dup()], "limit_connections": 1}
    async with serve(Discard(), **options) as server:
        async with await Client.to(sock.getsockname()) as client:
            await client.greet()
            async with await Client.to(sock.getsockname()) as late:
                server.rest()
                await client.say("QUIT")
                await until_here(lambda: server.gate.count == 0)
                await server.leave()
                assert server.gate.count == 0, "a free slot changes nothing"
                server.accept()
                assert (await late.greet()).code == 250
    sock.close()


# -- detached, and as another user -------------------------------------------------------------


@on_both_loops
def test_the_new_process_of_a_detached_daemon_is_detached(tmp_path: Path, loop: str) -> None:
    options = ("-l", "127.0.0.1:0", "--pid-file", "daemon.pid", "--loop", loop)
    with Detached(*options, cwd=tmp_path) as old:
        with old.smtp() as client:
            os.kill(old.pid, signal.SIGUSR2)
            until(lambda: re.search(TAKEN, old.text), "it takes over")
            new = int(re.findall(TAKEN, old.text)[-1])
            try:
                until(lambda: f"serving, pid {new}" in old.text, "it serves")
                assert (tmp_path / "daemon.pid").read_text() == f"{new}\n"
                client.sendmail("a@example.com", ["b@example.com"], "to the old one")
                client.quit()
                wait_until_gone(old.pid)
                with old.smtp() as other:
                    other.sendmail("a@example.com", ["b@example.com"], "to the new one")
                process = Process(new)
                assert process.folder == "/"
                assert process.terminal == 0
            finally:
                os.kill(new, signal.SIGTERM)
                wait_until_gone(new)
    assert len(messages(tmp_path / "Maildir")) == 2
    assert not (tmp_path / "daemon.pid").exists()


@pytest.mark.parametrize("detach", [False, True], ids=["foreground", "detached"])
def test_a_process_of_another_user_gets_the_files_that_root_created(
    public: Path, command_for_nobody: list[str], *, detach: bool
) -> None:
    """The pid-file in the directory of root is overwritten; the cleanup process stays."""
    (public / "run").mkdir(0o755)
    pid_file, sock = public / "run/daemon.pid", public / "run/smtp.sock"
    log = public / "smtpd.log"
    log.touch()
    log.chmod(0o666)
    options = ["-l", "127.0.0.1:0", "-u", "nobody", "-l", f"unix:{sock}", "--handler", "discard"]
    options += ["--pid-file", str(pid_file)]
    kind = Detached if detach else Daemon
    with kind(*options, cwd=public, command=command_for_nobody):
        old = int(pid_file.read_text())
        os.kill(old, signal.SIGUSR2)
        until(lambda: pid_file.read_text().strip() not in {"", str(old)}, "the pid changes")
        new = int(pid_file.read_text())
        wait_until_gone(old)
        try:
            assert Process(new).status["Uid"] == ["65534"] * 4
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(sock))
                assert client.recv(4) == b"220 "
        finally:
            os.kill(new, signal.SIGTERM)
            wait_until_gone(new)
    until(lambda: not any((public / "run").iterdir()), "the cleanup process is done")


# -- documentation and reload ------------------------------------------------------------------


def test_all_log_lines_of_upgrades_are_documented_with_their_levels() -> None:
    page = read("docs/systemd.md")
    documented = set(re.findall(r"^\| `([^`]+)` \| (info|warning|error) \|$", page, re.MULTILINE))
    source = Path(upgrade.__file__).read_text() + Path(serve_module.__file__).read_text()
    logged = re.findall(r'log\.(info|warning|error)\(\s*"([^"]+)"', source)
    lines = {(re.sub("%d", "N", text).replace("%s", "REASON"), level) for level, text in logged}
    ours = {(t, level) for t, level in lines if re.search("SIGUSR2|upgrade|continue in this", t)}
    assert len(ours) == 10
    assert ours == documented


async def test_a_withdrawn_server_cannot_be_reloaded() -> None:
    """No process would own a listener that such a reload opens."""
    async with serve(Discard()) as server:
        server.withdraw()
        with pytest.raises(OperatingSystemError, match="not running"):
            await server.reload()
