"""Daemon manners: detaching, the pid-file, another user, and the signals that end it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import smtplib
import socket
import stat
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest
from support.daemon import (
    COMMAND,
    PATIENCE,
    Daemon,
    clean_environment,
    is_alive,
    messages,
    run,
    wait_until_gone,
)
from support.peers import cannot, peer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.tls import Certificates

LOCAL = ("-l", "127.0.0.1:0", "--handler", "discard")

NOBODY = 65534


# -- what the tests look at --------------------------------------------------------------------


class Process:
    """What /proc tells of a process (proc(5))."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        self.parent, self.group, self.session, self.terminal = map(int, fields[1:5])
        self.folder = os.readlink(f"/proc/{pid}/cwd")
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        self.status = {line.partition(":")[0]: line.partition(":")[2].split() for line in lines}

    def descriptor(self, number: int) -> str:
        return os.readlink(f"/proc/{self.pid}/fd/{number}")


class Detached:
    """A daemon that was detached; a context manager that ends it.

    :ivar pid: of the daemon, as it logged it
    """

    def __init__(
        self,
        *options: str,
        cwd: Path,
        command: list[str] | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.log = cwd / "smtpd.log"
        self.ended = run(
            *("--detach", "--log-to", self.log.name, *options),
            cwd=cwd,
            command=command,
            environment=environment,
        )
        served = re.search(r"serving, pid (\d+)$", self.text, re.MULTILINE)
        self.pid = int(served[1]) if served else 0

    @property
    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    @property
    def port(self) -> int:
        found = re.search(r"listening on \S+:(\d+)$", self.text, re.MULTILINE)
        assert found, self.text
        return int(found[1])

    def smtp(self) -> smtplib.SMTP:
        return smtplib.SMTP("127.0.0.1", self.port, timeout=PATIENCE)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        os.kill(self.pid, number)
        wait_until_gone(self.pid)

    def __enter__(self) -> Self:
        assert (self.ended.returncode, self.ended.stdout) == (0, ""), self.ended.stderr
        assert self.pid, self.text
        return self

    def __exit__(self, *_: object) -> None:
        if self.pid and is_alive(self.pid):
            os.kill(self.pid, signal.SIGKILL)
            wait_until_gone(self.pid)


def until(happened: Callable[[], bool], what: str) -> None:
    """Wait for something that a foreign process does, and that nobody announces."""
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.005)


def begin_data(client: smtplib.SMTP) -> None:
    """Bring a session into the middle of a message."""
    client.ehlo()
    client.mail("a@example.com")
    client.rcpt("b@example.com")
    client.putcmd("DATA")
    assert client.getreply()[0] == 354
    client.send(b"Subject: half\r\n\r\nand half")


def last_word(client: smtplib.SMTP) -> tuple[int, bytes]:
    """Return the reply that comes unasked, and see that the connection ends with it."""
    code, text = client.getreply()
    assert client.file is not None
    assert client.file.read() == b""
    client.close()
    return code, text[:5]


def is_refused(port: int) -> bool:
    with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
        return False
    return True


# -- detaching ---------------------------------------------------------------------------------


def test_detach_returns_once_it_serves(tmp_path: Path) -> None:
    with Detached(*LOCAL, cwd=tmp_path) as daemon, daemon.smtp() as client:
        assert client.noop()[0] == 250


def test_detach_says_nothing_but_warnings(tmp_path: Path) -> None:
    with Detached(*LOCAL, cwd=tmp_path) as daemon:
        assert daemon.ended.stderr == ""


def test_detach_without_a_log_of_its_own_says_nothing_either(tmp_path: Path) -> None:
    """It logs to syslog, whether there is one or not."""
    ended = run(*LOCAL, "--detach", "--pid-file", "daemon.pid", cwd=tmp_path)
    pid = int((tmp_path / "daemon.pid").read_text())
    os.kill(pid, signal.SIGTERM)
    wait_until_gone(pid)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_a_detached_daemon_has_left_who_started_it(tmp_path: Path) -> None:
    with Detached(*LOCAL, cwd=tmp_path) as daemon:
        process = Process(daemon.pid)
        assert process.parent != os.getpid()
        assert process.session != os.getsid(0)
        assert process.terminal == 0
        assert process.session != daemon.pid, "a session's leader could get a terminal"
        assert process.folder == "/"
        assert [process.descriptor(number) for number in (0, 1, 2)] == ["/dev/null"] * 3
        assert process.status["Umask"] == ["0022"]


def test_a_detached_daemon_outlives_the_terminal_that_it_was_started_on(tmp_path: Path) -> None:
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
def test_detach_works_where_standard_streams_are_closed(tmp_path: Path, closed: str) -> None:
    """As some supervisors start things: a socket must not become descriptor 0, 1 or 2."""
    command = ["/bin/sh", "-c", f'exec "$@" {closed}', "sh", *COMMAND]
    with Detached(*LOCAL, cwd=tmp_path, command=command) as daemon, daemon.smtp() as client:
        assert client.noop()[0] == 250


def test_relative_paths_are_those_of_where_it_was_started(
    tmp_path: Path, certificates: Certificates
) -> None:
    shutil.copy(certificates.cert, tmp_path / "cert.pem")
    shutil.copy(certificates.key, tmp_path / "key.pem")
    (tmp_path / "own.py").write_text("class Handler:\n    pass\n")
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


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_detached_daemon_ends_its_sessions_in_order(tmp_path: Path, loop: str) -> None:
    with Detached(*LOCAL, "--loop", loop, cwd=tmp_path) as daemon:
        idle = daemon.smtp()
        os.kill(daemon.pid, signal.SIGTERM)
        assert last_word(idle) == (421, b"4.3.2")
        wait_until_gone(daemon.pid)
        assert is_refused(daemon.port)


# -- the pid-file ------------------------------------------------------------------------------


def test_the_pid_file_holds_the_pid_and_the_end_of_a_line(tmp_path: Path) -> None:
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
                f"smtpd-fork: cannot lock the pid-file {tmp_path}/daemon.pid: a running process "
                f"holds it (pid {daemon.pid}) (from --pid-file)\n"
            )
        assert (tmp_path / "daemon.pid").read_text() == f"{daemon.pid}\n"


@pytest.mark.parametrize("whose", ["dead", "ours", "init", "garbage"])
def test_a_pid_file_that_nobody_holds_never_blocks(tmp_path: Path, whose: str) -> None:
    with subprocess.Popen(["/bin/true"]) as ended:
        pass
    texts = {"dead": ended.pid, "ours": os.getpid(), "init": 1, "garbage": "what is this"}
    (tmp_path / "daemon.pid").write_text(f"{texts[whose]}\n")
    with Daemon(*LOCAL, "--pid-file", "daemon.pid", cwd=tmp_path) as daemon:
        assert (tmp_path / "daemon.pid").read_text() == f"{daemon.process.pid}\n"


def test_the_pid_file_of_a_daemon_that_was_killed_does_not_block_the_next(tmp_path: Path) -> None:
    options = ("-l", "unix:smtp.sock", "--handler", "discard", "--pid-file", "daemon.pid")
    with Daemon(*options, cwd=tmp_path) as first:
        first.stop(signal.SIGKILL)
    assert (tmp_path / "daemon.pid").exists()
    with Daemon(*options, cwd=tmp_path) as second:
        assert (tmp_path / "daemon.pid").read_text() == f"{second.process.pid}\n"
        assert second.stop() == 0
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_took_the_pid_files_place_is_not_removed(tmp_path: Path) -> None:
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


def test_a_daemon_that_is_still_ending_does_not_remove_the_socket_of_the_next(
    tmp_path: Path,
) -> None:
    """The old socket's path is free while old sessions end, and so is its inode number."""
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


# -- another user ------------------------------------------------------------------------------


@pytest.fixture
def public(command_for_nobody: list[str]) -> Iterator[Path]:
    """A folder that the user nobody can enter; in it `spool`, nobody's own, and `run`, root's."""
    folder = Path(tempfile.mkdtemp(prefix="smtpd-fork-", dir="/tmp"))
    folder.chmod(0o755)
    (folder / "spool").mkdir()
    os.chown(folder / "spool", NOBODY, NOBODY)
    (folder / "run").mkdir(0o700)
    yield folder
    shutil.rmtree(folder)


AS_NOBODY = ("-l", "127.0.0.1:0", "-u", "nobody", "--handler", "maildir:spool/Maildir")


def test_the_process_becomes_the_user_with_all_its_ids(
    public: Path, command_for_nobody: list[str]
) -> None:
    with Daemon(*AS_NOBODY, cwd=public, command=command_for_nobody) as daemon:
        status = Process(daemon.process.pid).status
        assert status["Uid"] == [str(NOBODY)] * 4
        assert status["Gid"] == [str(NOBODY)] * 4
        assert status["Groups"] == [str(NOBODY)]
        for capabilities in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
            assert int(status[capabilities][0], 16) == 0


def test_root_cannot_come_back(public: Path, command_for_nobody: list[str]) -> None:
    (public / "attempt.py").write_text(
        "import os\n\n\n"
        "def attempt(call, *args):\n"
        "    try:\n"
        "        call(*args)\n"
        "    except PermissionError:\n"
        "        return 'refused'\n"
        "    return 'came back'\n\n\n"
        "class Attempt:\n"
        "    async def handle_DATA(self, server, session, envelope):\n"
        "        calls = [(os.setuid, 0), (os.seteuid, 0), (os.setresuid, -1, 0, -1),\n"
        "                 (os.setgid, 0), (os.setegid, 0), (os.setgroups, [0]),\n"
        "                 (os.listdir, 'ROOTS'), (os.open, '/proc/1/environ', os.O_RDONLY)]\n"
        "        return '250 ' + ' '.join({attempt(*call) for call in calls})\n".replace(
            "ROOTS", str(public / "run")
        )
    )
    options = ("-l", "127.0.0.1:0", "-u", "nobody", "--handler", "attempt:Attempt")
    with Daemon(*options, cwd=public, command=command_for_nobody) as daemon:
        with daemon.smtp() as client:
            client.ehlo()
            client.mail("a@example.com")
            client.rcpt("b@example.com")
            assert client.data("hello") == (250, b"refused")


def test_a_user_may_be_named_by_its_number(public: Path, command_for_nobody: list[str]) -> None:
    options = ("-l", "127.0.0.1:0", "--user", str(NOBODY), "--handler", "discard")
    with Daemon(*options, cwd=public, command=command_for_nobody) as daemon:
        assert Process(daemon.process.pid).status["Uid"] == [str(NOBODY)] * 4
        assert "running as root" not in daemon.log


def test_who_stays_root_is_warned(public: Path, command_for_nobody: list[str]) -> None:
    with Daemon(*LOCAL, cwd=public, command=command_for_nobody) as daemon:
        assert "WARNING running as root; name a user with --user" in daemon.log


def test_the_maildir_belongs_to_the_user(public: Path, command_for_nobody: list[str]) -> None:
    with Daemon(*AS_NOBODY, cwd=public, command=command_for_nobody) as daemon:
        daemon.deliver()
    maildir = public / "spool/Maildir"
    assert len(messages(maildir)) == 1
    made = [maildir, *maildir.rglob("*")]
    assert {(path.stat().st_uid, path.stat().st_gid) for path in made} == {(NOBODY, NOBODY)}


def test_a_privileged_port_is_bound_before_root_is_gone(
    public: Path, command_for_nobody: list[str]
) -> None:
    first = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    if first <= 1:
        cannot("no port takes privileges on this system")
    port = free_privileged_port(first)
    options = ("-l", f"127.0.0.1:{port}", "-u", "nobody", "--handler", "discard")
    with Daemon(*options, cwd=public, command=command_for_nobody) as daemon:
        daemon.deliver()


def free_privileged_port(first: int) -> int:
    for port in range(first - 1, 0, -1):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("every privileged port is taken")


def test_what_only_root_can_read_is_read_before_root_is_gone(
    public: Path, command_for_nobody: list[str], certificates: Certificates
) -> None:
    tls = ("--tls-cert", str(certificates.cert), "--tls-key", str(certificates.key))
    assert certificates.key.parent.stat().st_mode & 0o077 == 0
    log = public / "run/smtpd.log"
    options = (*AS_NOBODY, *tls, "--log-to", str(log), "--detach", "--pid-file", "run/daemon.pid")
    ended = run(*options, cwd=public, command=command_for_nobody)
    assert (ended.returncode, ended.stderr) == (0, "")
    pid = int((public / "run/daemon.pid").read_text())
    try:
        assert Process(pid).status["Uid"] == [str(NOBODY)] * 4
        found = re.search(r"listening on 127\.0\.0\.1:(\d+)$", log.read_text(), re.MULTILINE)
        assert found
        with smtplib.SMTP("127.0.0.1", int(found[1]), timeout=PATIENCE) as client:
            client.starttls(context=certificates.client)
            assert client.noop()[0] == 250
    finally:
        os.kill(pid, signal.SIGTERM)
        wait_until_gone(pid)
    until(lambda: not (public / "run/daemon.pid").exists(), "the pid-file is removed")
    assert log.read_text().endswith("INFO stopped\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("detach", [False, True], ids=["in front", "detached"])
def test_what_only_root_can_remove_is_removed_at_the_end(
    public: Path, command_for_nobody: list[str], number: signal.Signals, *, detach: bool
) -> None:
    pid_file, sock = public / "run/daemon.pid", public / "run/smtp.sock"
    options = (*AS_NOBODY, "-l", f"unix:{sock}", "--pid-file", str(pid_file))
    kind = Detached if detach else Daemon
    with kind(*options, cwd=public, command=command_for_nobody) as daemon:
        pid = int(pid_file.read_text())
        assert Process(pid).status["Uid"] == [str(NOBODY)] * 4
        assert (sock.stat().st_uid, sock.stat().st_gid) == (NOBODY, NOBODY)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(sock))
            assert client.recv(4) == b"220 "
        daemon.stop(number)
    if number == signal.SIGKILL:  # nobody was there to wait for the janitor
        until(lambda: not any((public / "run").iterdir()), "the janitor is done")
    assert list((public / "run").iterdir()) == []


def test_a_restart_after_a_kill_finds_nothing_in_its_way(
    public: Path, command_for_nobody: list[str]
) -> None:
    options = (*AS_NOBODY, "-l", "unix:run/smtp.sock", "--pid-file", "run/daemon.pid")
    with Daemon(*options, cwd=public, command=command_for_nobody) as first:
        first.stop(signal.SIGKILL)
    with Daemon(*options, cwd=public, command=command_for_nobody) as second:
        assert (public / "run/daemon.pid").read_text() == f"{second.process.pid}\n"
        assert second.stop() == 0


def test_the_janitor_does_not_remove_the_socket_of_the_next_daemon(
    public: Path, command_for_nobody: list[str]
) -> None:
    """Where the user may remove the path itself, it is free long before the janitor comes."""
    path = public / "spool/smtp.sock"
    options = ("-u", "nobody", "-l", f"unix:{path}", "--handler", "discard")
    with (
        Daemon("-l", "127.0.0.1:0", *options, cwd=public, command=command_for_nobody) as old,
        old.smtp() as client,
    ):
        begin_data(client)
        old.signal(signal.SIGTERM)
        until(lambda: not path.exists(), "the old socket's path is removed")
        with Daemon(*options, cwd=public, command=command_for_nobody) as new:
            client.send(b"\r\n.\r\n")
            assert client.getreply()[0] == 250
            assert last_word(client) == (421, b"4.3.2")
            assert old.process.wait(PATIENCE) == 0
            assert path.exists()
            assert new.stop() == 0


def test_the_janitor_holds_no_port_and_ends_with_the_daemon(
    public: Path, command_for_nobody: list[str]
) -> None:
    with Daemon(*AS_NOBODY, cwd=public, command=command_for_nobody) as daemon:
        children = Path(f"/proc/{daemon.process.pid}/task/{daemon.process.pid}/children")
        (janitor,) = map(int, children.read_text().split())
        links = [os.readlink(entry) for entry in Path(f"/proc/{janitor}/fd").iterdir()]
        assert len([link for link in links if link.startswith("socket:")]) == 1
        port = daemon.port
        daemon.stop(signal.SIGKILL)
        wait_until_gone(janitor)
        socket.create_server(("127.0.0.1", port)).close()


# -- signals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_session_is_told_421_and_the_status_is_0(
    tmp_path: Path, number: signal.Signals
) -> None:
    with Daemon(*LOCAL, cwd=tmp_path) as daemon:
        idle = daemon.smtp()
        daemon.signal(number)
        assert last_word(idle) == (421, b"4.3.2")
        assert daemon.process.wait(PATIENCE) == 0


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_message_in_flight_is_finished_and_then_the_session_ends(
    tmp_path: Path, loop: str
) -> None:
    with Daemon("-l", "127.0.0.1:0", "--loop", loop, cwd=tmp_path) as daemon:
        client = daemon.smtp()
        begin_data(client)
        daemon.signal(signal.SIGTERM)
        daemon.wait_for("stopping: 1 sessions")
        assert is_refused(daemon.port)
        client.send(b" a line\r\n.\r\n")
        assert client.getreply()[0] == 250
        assert last_word(client) == (421, b"4.3.2")
        assert daemon.process.wait(PATIENCE) == 0
    (text,) = messages(tmp_path / "Maildir")
    assert text.endswith("\n\nand half a line\n")


def test_a_client_that_waits_in_the_backlog_is_told_421(tmp_path: Path) -> None:
    with Daemon(*LOCAL, "-c", "1", cwd=tmp_path) as daemon:
        inside = daemon.smtp()
        with socket.create_connection(("127.0.0.1", daemon.port), timeout=PATIENCE) as waiting:
            daemon.wait_for("clients wait in the backlog")
            daemon.signal(signal.SIGTERM)
            assert waiting.recv(9) == b"421 4.3.2"
        assert last_word(inside) == (421, b"4.3.2")
        assert daemon.process.wait(PATIENCE) == 0


def test_a_client_that_waits_for_its_time_is_told_421(tmp_path: Path) -> None:
    options = ("-c", "1", "--when-full", "defer:60")
    with Daemon(*LOCAL, *options, cwd=tmp_path) as daemon:
        inside = daemon.smtp()
        with socket.create_connection(("127.0.0.1", daemon.port), timeout=PATIENCE) as waiting:
            daemon.signal(signal.SIGTERM)
            assert waiting.recv(9) == b"421 4.3.2"
        assert last_word(inside) == (421, b"4.3.2")
        assert daemon.process.wait(PATIENCE) == 0


def test_a_message_that_stalls_is_cut_when_the_time_is_up(tmp_path: Path) -> None:
    options = ("-l", "127.0.0.1:0", "--shutdown-timeout", "300ms")
    with Daemon(*options, cwd=tmp_path) as daemon:
        client = daemon.smtp()
        begin_data(client)
        begun = time.monotonic()
        assert daemon.stop() == 0
        assert 0.25 < time.monotonic() - begun < 5
        client.close()
        assert "WARNING 1 sessions were cut" in daemon.log
    assert messages(tmp_path / "Maildir") == []
    assert list((tmp_path / "Maildir/tmp").iterdir()) == []


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_stops_at_once(tmp_path: Path, loop: str, second: signal.Signals) -> None:
    options = ("--pid-file", "daemon.pid", "--shutdown-timeout", "60", "--loop", loop)
    with Daemon(*LOCAL, *options, cwd=tmp_path) as daemon:
        client = daemon.smtp()
        begin_data(client)
        daemon.signal(signal.SIGTERM)
        daemon.wait_for("stopping: 1 sessions")
        begun = time.monotonic()
        assert daemon.stop(second) == 0
        assert time.monotonic() - begun < 5
        client.close()
        assert f"WARNING {second.name} again: stopping at once" in daemon.log
        assert "Traceback" not in daemon.log
        assert daemon.log.endswith("INFO stopped")
    assert not (tmp_path / "daemon.pid").exists()


def test_signals_that_come_together_do_no_harm(tmp_path: Path) -> None:
    with Daemon(*LOCAL, "--pid-file", "daemon.pid", cwd=tmp_path) as daemon:
        for _ in range(20):
            daemon.signal(signal.SIGTERM)
            daemon.signal(signal.SIGINT)
        assert daemon.process.wait(PATIENCE) == 0
    assert "Traceback" not in daemon.log
    assert not (tmp_path / "daemon.pid").exists()


def test_sighup_does_not_end_it(tmp_path: Path) -> None:
    with Daemon(*LOCAL, cwd=tmp_path) as daemon, daemon.smtp() as client:
        daemon.signal(signal.SIGHUP)
        daemon.wait_for("SIGHUP")
        assert client.noop()[0] == 250
        daemon.deliver()
        client.quit()
        assert daemon.stop() == 0


def test_a_client_that_vanishes_does_not_hold_up_the_stop(tmp_path: Path) -> None:
    with Daemon(*LOCAL, cwd=tmp_path) as daemon:
        client = daemon.smtp()
        begin_data(client)
        daemon.signal(signal.SIGTERM)
        daemon.wait_for("stopping: 1 sessions")
        client.close()
        begun = time.monotonic()
        assert daemon.process.wait(PATIENCE) == 0
        assert time.monotonic() - begun < 5


def test_a_port_can_be_bound_again_at_once(tmp_path: Path) -> None:
    """With sessions of the old daemon in TIME_WAIT, which it closed first."""
    with Daemon(*LOCAL, cwd=tmp_path) as old:
        idle = old.smtp()
        old.signal(signal.SIGTERM)
        assert last_word(idle) == (421, b"4.3.2")
        assert old.process.wait(PATIENCE) == 0
        port = old.port
    with Daemon("-l", f"127.0.0.1:{port}", "--handler", "discard", cwd=tmp_path) as new:
        new.deliver()
