"""Takeover: SIGUSR2, a new process goes on, and nobody outside sees that there are two."""

from __future__ import annotations

import asyncio
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import msgspec
import pytest
from support.client import Client
from support.daemon import (
    COMMAND,
    LOCAL,
    PATIENCE,
    Daemon,
    Detached,
    Process,
    free_ports,
    is_alive,
    messages,
    run,
    until,
    wait_until_gone,
)
from support.dialogue import begin_data, last_word
from support.manager import Manager
from support.peers import peer
from support.place import only_line
from support.server import serve
from support.server import until as until_here

from smtpd_fork import Server
from smtpd_fork.cli import serve as serve_module
from smtpd_fork.cli import takeover
from smtpd_fork.cli.holdings import Holdings
from smtpd_fork.daemon import Estate, Heir, Origin
from smtpd_fork.daemon.estate import TAKEOVER
from smtpd_fork.errors import ExitStatus
from smtpd_fork.sinks import Discard

if TYPE_CHECKING:
    from collections.abc import Iterator

LOOPS = pytest.mark.parametrize("loop", ["uvloop", "asyncio"])

TAKEN = r"process (\d+) has taken over"

GATED = """
import pathlib, time

while pathlib.Path("wait").exists():
    time.sleep(0.01)
if pathlib.Path("broken").exists():
    raise SystemExit(pathlib.Path("broken").read_text())


class Handler:
    async def handle_DATA(self, server, session, envelope):
        return "250 taken"
"""
"""A handler that can be told to be slow, or broken, when it is imported."""


class Heirs:
    """Ends the processes that took over from a daemon; a context manager.

    :ivar pids: theirs, in order
    """

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.pids: list[int] = []

    def take_over(self) -> int:
        """Have the last one hand over; return the pid of the next."""
        last = self.pids[-1] if self.pids else self.daemon.process.pid
        os.kill(last, signal.SIGUSR2)
        count = len(self.pids) + 1
        until(lambda: len(re.findall(TAKEN, self.daemon.log)) == count, "it takes over")
        pid = int(re.findall(TAKEN, self.daemon.log)[-1])
        self.pids.append(pid)
        self.daemon.wait_for(f"serving, pid {pid}$")
        return pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self.pids:
            if is_alive(pid):
                os.kill(pid, signal.SIGTERM)
        for pid in self.pids:
            wait_until_gone(pid)


# -- what goes on ------------------------------------------------------------------------------


@LOOPS
def test_sockets_paths_and_the_pid_file_go_to_the_new_one_and_sessions_stay(
    tmp_path: Path, loop: str
) -> None:
    path, pid_file = tmp_path / "smtp.sock", tmp_path / "daemon.pid"
    options = (*LOCAL, "-l", f"unix:{path}", "--pid-file", str(pid_file), "--loop", loop)
    with Daemon(*options, cwd=tmp_path) as daemon, Heirs(daemon) as heirs:
        places = daemon.places
        inode = path.stat().st_ino
        client = daemon.smtp()
        begin_data(client)
        idle = daemon.smtp()
        new = heirs.take_over()
        assert pid_file.read_text() == f"{new}\n"
        client.send(b" a line\r\n.\r\n")
        assert client.getreply()[0] == 250
        assert idle.noop()[0] == 250, "nobody is told to go"
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
        assert f"a running process holds it (pid {new})" in only_line(locked)
        os.kill(new, signal.SIGTERM)
        wait_until_gone(new)
        assert not path.exists()
        assert not pid_file.exists()


@LOOPS
def test_under_load_no_message_is_lost_and_no_connection_refused(tmp_path: Path, loop: str) -> None:
    (tmp_path / "counting.py").write_text(COUNTING)
    taken = tmp_path / "taken"
    options = ("-l", "127.0.0.1:0", "-m", "0", "--handler", "counting:Handler", "--loop", loop)
    with Daemon(*options, cwd=tmp_path) as daemon:
        with Load(daemon.port) as load, Heirs(daemon) as heirs:
            for _ in range(4):
                before = len(lines(taken))
                until(lambda least=before + 200: len(lines(taken)) >= least, "mail comes in")  # type: ignore[misc]
                heirs.take_over()
            load.finish()
        assert load.faults == []
        assert len(lines(taken)) == load.sent > 800
        assert len(set(lines(taken))) == 5, "each had its part"
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


class Load:
    """smtp-source, over and over, until it is told to finish; a context manager.

    :ivar sent: how many messages it was asked to send
    :ivar faults: what it complained of
    """

    ROUND = 300

    def __init__(self, port: int) -> None:
        self._command = [peer("smtp-source"), "-s", "8", "-m", str(self.ROUND), "-l", "2000"]
        self._command.append(f"inet:127.0.0.1:{port}")
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.sent = 0
        self.faults: list[str] = []

    def _run(self) -> None:
        while not self._over.is_set():
            ended = subprocess.run(self._command, capture_output=True, text=True, check=False)
            self.sent += self.ROUND
            if ended.returncode or ended.stdout or ended.stderr:
                self.faults.append(f"{ended.returncode} {ended.stdout}{ended.stderr}")

    def finish(self) -> None:
        self._over.set()
        self._thread.join()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


@LOOPS
def test_clients_in_the_backlog_come_in_with_the_new_one(tmp_path: Path, loop: str) -> None:
    with Daemon(*LOCAL, "-c", "2", "--loop", loop, cwd=tmp_path) as daemon, Heirs(daemon) as heirs:
        inside = [daemon.smtp(), daemon.smtp()]
        address = ("127.0.0.1", daemon.port)
        waiting = [socket.create_connection(address, timeout=PATIENCE) for _ in range(2)]
        daemon.wait_for("clients wait in the backlog")
        heirs.take_over()
        for sock in waiting:
            assert sock.recv(4) == b"220 "
            sock.close()
        for client in inside:
            assert client.noop()[0] == 250
            client.quit()
        assert daemon.process.wait(PATIENCE) == 0


def test_clients_who_wait_for_a_place_in_the_old_one_get_it_there(tmp_path: Path) -> None:
    options = (*LOCAL, "-c", "1", "--when-full", "defer:60")
    with Daemon(*options, cwd=tmp_path) as daemon, Heirs(daemon) as heirs:
        inside = daemon.smtp()
        address = ("127.0.0.1", daemon.port)
        with socket.create_connection(address, timeout=PATIENCE) as waiting:
            until(lambda: accepted(daemon.process.pid) == 2, "it is accepted, and waits")
            heirs.take_over()
            inside.quit()
            assert waiting.recv(4) == b"220 "
            waiting.sendall(b"QUIT\r\n")
        assert daemon.process.wait(PATIENCE) == 0


def accepted(pid: int) -> int:
    """Return how many connections of TCP a process has open."""
    found = {os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    established = [
        line.split()[9]
        for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
        if line.split()[3] == "01"
    ]
    return sum(f"socket:[{inode}]" in found for inode in established)


def test_the_old_one_that_drains_can_still_be_stopped(tmp_path: Path) -> None:
    with Daemon(*LOCAL, cwd=tmp_path) as daemon, Heirs(daemon) as heirs:
        idle = daemon.smtp()
        heirs.take_over()
        daemon.signal(signal.SIGUSR2)
        daemon.wait_for("WARNING SIGUSR2: another process has taken over from this one already")
        daemon.signal(signal.SIGTERM)
        assert last_word(idle) == (421, b"4.3.2")
        assert daemon.process.wait(PATIENCE) == 0
        daemon.deliver()


def test_new_settings_hold_for_the_new_one_and_its_addresses(tmp_path: Path) -> None:
    """The command line is the same; what it reads (here by a wrapper) need not be."""
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
        Heirs(daemon) as heirs,
    ):
        listen_on(stays, comes)
        heirs.take_over()
        assert daemon.process.wait(PATIENCE) == 0
        for port in (stays, comes):
            with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
                assert client.recv(4) == b"220 "
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", goes), timeout=PATIENCE)
        assert not (tmp_path / "goes.sock").exists()


async def test_a_server_that_withdrew_greets_who_was_accepted_and_leaves_when_all_have() -> None:
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
                assert server.gate.count == 1, "nobody accepts the late one here"
                await client.say("QUIT")
                await leaving
                late.reset()
    sock.close()


# -- what cannot be ----------------------------------------------------------------------------


@pytest.fixture
def gated(tmp_path: Path) -> Iterator[Daemon]:
    (tmp_path / "gated.py").write_text(GATED)
    options = ("-l", "127.0.0.1:0", "-l", "unix:smtp.sock", "--pid-file", "daemon.pid")
    with Daemon(*options, "--handler", "gated:Handler", cwd=tmp_path) as daemon:
        yield daemon


def test_a_new_one_that_cannot_start_changes_nothing(tmp_path: Path, gated: Daemon) -> None:
    client = gated.smtp()
    (tmp_path / "broken").write_text("no moon tonight")
    for _ in range(2):
        gated.signal(signal.SIGUSR2)
        line = gated.wait_for("ERROR no takeover, this process goes on: (.*)")[1]
        assert "handler 'gated:Handler': cannot import gated" in line
        assert "no moon tonight" in line
        gated.lines.clear()
    assert (tmp_path / "daemon.pid").read_text() == f"{gated.process.pid}\n"
    assert (tmp_path / "smtp.sock").exists()
    assert client.noop()[0] == 250
    (tmp_path / "broken").unlink()
    client.quit()
    with Heirs(gated) as heirs:
        heirs.take_over()
        assert gated.process.wait(PATIENCE) == 0


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("import no_such_module_at_all", "No module named 'no_such_module_at_all'"),
        ("import os; os._exit(3)", "it ended with status 3$"),
        ("import os; os.kill(os.getpid(), 9)", "it ended with status -9$"),
        ("import sys; sys.stderr.write('x' * 10**6); sys.exit(4)", "it ended with status 4"),
        ("import sys; sys.argv.append('--no-such-option')", "No such option"),
    ],
)
def test_whatever_becomes_of_a_new_one_is_told(tmp_path: Path, fault: str, says: str) -> None:
    script = (
        "import pathlib, sys\n"
        "if pathlib.Path('fault').exists():\n"
        "    exec(pathlib.Path('fault').read_text())\n"
        "from smtpd_fork.cli import main\n"
        "sys.exit(main())\n"
    )
    command = [sys.executable, "-c", script]
    options = (*LOCAL, "--pid-file", "daemon.pid")
    with Daemon(*options, cwd=tmp_path, command=command) as daemon:
        (tmp_path / "fault").write_text(fault)
        daemon.signal(signal.SIGUSR2)
        line = daemon.wait_for("ERROR no takeover, this process goes on: (.*)")[1]
        assert re.search(says, line)
        assert len(line) < 5000
        daemon.deliver()
        assert (tmp_path / "daemon.pid").read_text() == f"{daemon.process.pid}\n"
        assert daemon.stop() == 0


def test_a_new_one_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    (tmp_path / "gated.py").write_text(GATED)
    script = (
        "import sys\n"
        "from smtpd_fork.cli import main, takeover\n"
        "takeover.START_SECONDS = 1.5\n"
        "sys.exit(main())\n"
    )
    options = ("-l", "127.0.0.1:0", "--handler", "gated:Handler")
    with Daemon(*options, cwd=tmp_path, command=[sys.executable, "-c", script]) as daemon:
        (tmp_path / "wait").touch()
        daemon.signal(signal.SIGUSR2)
        daemon.wait_for(r"ERROR no takeover, this process goes on: it was not ready in 1.5 s")
        until(lambda: not children(daemon.process.pid), "the new one has ended")
        (tmp_path / "wait").unlink()
        daemon.deliver()


def children(pid: int) -> list[int]:
    words = [
        word
        for thread in Path(f"/proc/{pid}/task").iterdir()
        for word in (thread / "children").read_text().split()
    ]
    return [int(word) for word in words if is_alive(int(word))]


def test_a_second_signal_meanwhile_is_told_and_nothing_else(tmp_path: Path, gated: Daemon) -> None:
    (tmp_path / "wait").touch()
    gated.signal(signal.SIGUSR2)
    gated.wait_for("SIGUSR2: a new process takes over")
    gated.signal(signal.SIGUSR2)
    gated.wait_for("WARNING SIGUSR2: a new process is starting already")
    (tmp_path / "wait").unlink()
    with Heirs(gated) as heirs:
        heirs.pids.append(int(gated.wait_for(TAKEN)[1]))
        assert gated.process.wait(PATIENCE) == 0
        gated.deliver()


def test_a_stop_meanwhile_ends_both(tmp_path: Path, gated: Daemon) -> None:
    (tmp_path / "wait").touch()
    gated.signal(signal.SIGUSR2)
    until(lambda: children(gated.process.pid), "the new one is started")
    (new,) = children(gated.process.pid)
    assert gated.stop() == 0
    wait_until_gone(new)
    assert not (tmp_path / "daemon.pid").exists()
    assert not (tmp_path / "smtp.sock").exists()


def test_a_process_that_stops_hands_over_to_nobody(tmp_path: Path) -> None:
    with Daemon(*LOCAL, cwd=tmp_path) as daemon:
        client = daemon.smtp()
        begin_data(client)
        daemon.signal(signal.SIGTERM)
        daemon.wait_for("stopping: 1 sessions")
        daemon.signal(signal.SIGUSR2)
        daemon.wait_for("WARNING SIGUSR2: this process does not serve, not yet or not any more")
        client.send(b"\r\n.\r\n")
        assert client.getreply()[0] == 250
        assert last_word(client) == (421, b"4.3.2")
        assert daemon.process.wait(PATIENCE) == 0


def test_without_descriptors_there_is_no_takeover_and_later_there_is(tmp_path: Path) -> None:
    with Daemon(*LOCAL, cwd=tmp_path) as daemon, Heirs(daemon) as heirs:
        pid = daemon.process.pid
        limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, limits[1]))
        daemon.signal(signal.SIGUSR2)
        daemon.wait_for("ERROR no takeover, this process goes on: .*Too many open files")
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        heirs.take_over()
        assert daemon.process.wait(PATIENCE) == 0


@pytest.mark.parametrize("value", ["", "x", "{}", '{"parent": 1, "stderr": 2}', "[" * 10000])
def test_a_variable_that_is_not_meant_for_it_is_one_line(tmp_path: Path, value: str) -> None:
    ended = run(*LOCAL, cwd=tmp_path, environment={TAKEOVER: value})
    assert ended.returncode == ExitStatus.USAGE
    assert TAKEOVER in only_line(ended)


# -- with the manners of a daemon --------------------------------------------------------------


@LOOPS
def test_a_detached_daemon_is_followed_by_a_detached_one(tmp_path: Path, loop: str) -> None:
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


@pytest.mark.parametrize("detach", [False, True], ids=["in front", "detached"])
def test_another_user_takes_over_what_root_made(
    public: Path, command_for_nobody: list[str], *, detach: bool
) -> None:
    """The pid-file in root's folder is written in place, and the janitor serves the next one."""
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
        until(lambda: pid_file.read_text().strip() not in {"", str(old)}, "the pid is another")
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
    until(lambda: not any((public / "run").iterdir()), "the janitor is done")


# -- under systemd -----------------------------------------------------------------------------


def test_the_manager_is_told_by_the_old_one_who_is_next(tmp_path: Path) -> None:
    address = str(tmp_path / "notify.sock")
    environment = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "500000"}
    with Manager(address) as manager:
        with Daemon(*LOCAL, cwd=tmp_path, environment=environment) as daemon:
            manager.wait_for_field("READY")
            with Heirs(daemon) as heirs:
                new = heirs.take_over()
                assert int(manager.wait_for_field("MAINPID")["MAINPID"]) == new
                manager.wait_for_field("READY")
                assert daemon.process.wait(PATIENCE) == 0
                manager.wait_for_field("WATCHDOG")  # the new one's
            manager.wait_for_field("STOPPING")
    assert sum("STOPPING" in message for message in manager.messages) == 1


def test_sockets_of_systemd_are_passed_on(tmp_path: Path) -> None:
    plain, lmtp = free_ports(2)
    activate = [
        *(peer("systemd-socket-activate"), "--fdname", "smtp:lmtp", "-E", "PATH"),
        *("-l", f"127.0.0.1:{plain}", "-l", f"127.0.0.1:{lmtp}", *COMMAND),
    ]
    client = threading.Thread(target=until, args=(lambda: is_served(plain), "systemd listens"))
    client.start()
    with (
        Daemon("--handler", "discard", cwd=tmp_path, command=activate) as daemon,
        Heirs(daemon) as heirs,
    ):
        client.join(PATIENCE)
        places = daemon.places
        for _ in range(2):
            heirs.take_over()
        assert daemon.places == places * 3
        daemon.deliver()


def is_served(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE).close()
    except ConnectionRefusedError:
        return False
    return True


# -- companions --------------------------------------------------------------------------------


def test_sockets_of_companions_are_claimed_by_name_and_the_others_closed(tmp_path: Path) -> None:
    wanted, unwanted = (socket.create_server(("127.0.0.1", 0)) for _ in range(2))
    port = wanted.getsockname()[1]
    server = Server(Discard(), listen=["127.0.0.1:0"])
    old = Holdings(Origin.here())
    estate = old.estate(server, {"a": wanted, "b": unwanted}, 2)
    text = estate.text()
    left = msgspec.json.decode(text, type=Estate)
    assert left == estate
    ours, other = socket.socketpair()
    new = Holdings(Origin.here(), heir=Heir(left, ours))
    claimed = new.claim("a")
    assert claimed is not None
    assert claimed.getsockname()[1] == port
    assert new.claim("a") is None
    assert old.claim("a") is None
    new.take_over()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(unwanted.detach())
    wanted.detach()
    for sock in (claimed, ours, other):
        sock.close()


# -- what is written down ----------------------------------------------------------------------


def test_every_line_of_its_log_is_in_the_docs_with_its_level() -> None:
    page = (Path(__file__).parents[1] / "docs/systemd.md").read_text()
    told = set(re.findall(r"^\| `([^`]+)` \| (info|warning|error) \|$", page, re.MULTILINE))
    source = Path(takeover.__file__).read_text() + Path(serve_module.__file__).read_text()
    logged = re.findall(r'log\.(info|warning|error)\(\s*"([^"]+)"', source)
    lines = {(re.sub("%d", "N", text).replace("%s", "REASON"), level) for level, text in logged}
    ours = {(t, level) for t, level in lines if re.search("SIGUSR2|take|go on here", t)}
    assert len(ours) == 8
    assert ours == told
