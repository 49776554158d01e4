"""Upgrades of a supervisor: its processes are replaced one by one, or nothing changes."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest
from support.control import CONTROL, ask, says
from support.daemon import (
    LOCAL,
    PATIENCE,
    Daemon,
    Process,
    is_alive,
    on_both_loops,
    until,
    wait_until_gone,
)
from support.dialogue import begin_data
from support.supervised import children
from support.upgrades import TAKEN, Successors

if TYPE_CHECKING:
    import smtplib
    from collections.abc import Iterator
    from pathlib import Path

STEPWISE = """
import os, pathlib, time

log = os.open("started", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
os.write(log, b"-\\n")
number = os.fstat(log).st_size // 2
while pathlib.Path(f"wait-{number}").exists():
    time.sleep(0.01)
if pathlib.Path(f"broken-{number}").exists():
    raise ValueError("no moon tonight")


class Handler:
    async def handle_NOOP(self, server, session, envelope, argument):
        return f"250 {os.getpid()}"

    async def handle_DATA(self, server, session, envelope):
        return "250 taken"
"""
"""A handler whose Nth import is slow, or fails, if it is told to. The supervisor imports none."""

OPTIONS = ("-l", "127.0.0.1:0", "--handler", "stepwise:Handler", "--processes", "2", "-c", "4")

MANAGED = {"NOTIFY_SOCKET": "@no-manager-answers"}
"""With it the new supervisor leaves its parent, as it does under systemd."""

FAILED = "ERROR upgrade failed, this process continues: "


def pid_of(client: smtplib.SMTP) -> int:
    """Return the process that a session is in."""
    code, text = client.noop()
    assert code == 250
    return int(text)


class Halfway:
    """A daemon with two processes in an upgrade, while the second new process starts.

    :ivar old: the supervisor
    :ivar new: the new supervisor
    :ivar processes: the first old one, which rests, the second, which accepts, and the new one
    :ivar sessions: one in each of them
    """

    def __init__(self, folder: Path, daemon: Daemon) -> None:
        self.folder = folder
        self.daemon = daemon
        self.old = daemon.process.pid
        first, second = children(daemon)
        self.sessions = [self.session_in(first)]
        (folder / "wait-4").touch()
        daemon.signal(signal.SIGUSR2)
        daemon.wait_for("upgrade: 1 of 2 new processes serve, and 1 of 2 old ones")
        until(lambda: (folder / "started").stat().st_size == 2 * 4, "the second one starts")
        self.processes = children(daemon, 3)
        self.new = Process(self.processes[2]).parent
        self.sessions += [self.session_in(pid) for pid in (second, self.processes[2])]

    def session_in(self, pid: int) -> smtplib.SMTP:
        """Return a session in a process that accepts; each of them takes two."""
        others = []
        while pid_of(client := self.daemon.smtp()) != pid:
            others.append(client)
        for other in others:
            other.close()
        return client

    def go_on(self) -> None:
        """Have the second new process start."""
        (self.folder / "wait-4").unlink()

    def fail(self) -> None:
        """Have its start fail."""
        (self.folder / "broken-4").touch()
        self.go_on()

    def check_sessions(self, *numbers: int) -> None:
        """See that sessions go on where they were, and take mail."""
        for number in numbers or range(3):
            client = self.sessions[number]
            assert pid_of(client) == self.processes[number]
            client.sendmail("a@example.com", ["b@example.com"], "Subject: hi\r\n\r\nhello\r\n")

    def check_that_old_ones_accept(self, *pids: int) -> None:
        """See that new sessions are in these processes, and in no others."""
        until(lambda: self._states() == dict.fromkeys(pids, "serving"), "they alone serve")
        for pid in pids:
            self.session_in(pid).close()

    def _states(self) -> dict[int, str]:
        listed = ask(self.folder, "status")["processes"]
        return {each["pid"]: each["state"] for each in listed if each["state"] == "serving"}

    def end_sessions(self) -> None:
        for client in self.sessions:
            with suppress(OSError):
                client.close()


@contextmanager
def upgrading(
    folder: Path,
    *options: str,
    environment: dict[str, str] | None = None,
    command: list[str] | None = None,
) -> Iterator[Halfway]:
    (folder / "stepwise.py").write_text(STEPWISE)
    options = (*OPTIONS, *CONTROL, "--pid-file", "pid", *options)
    with Daemon(*options, cwd=folder, environment=environment, command=command) as daemon:
        halfway = Halfway(folder, daemon)
        try:
            yield halfway
        finally:
            (folder / "wait-4").unlink(missing_ok=True)
            halfway.end_sessions()
            for pid in (halfway.new, *children(daemon)):
                if is_alive(pid):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGTERM)
                    wait_until_gone(pid)


# -- the upgrade -------------------------------------------------------------------------------


@on_both_loops
def test_processes_are_replaced_one_by_one_and_the_rest_changes_hands_at_the_end(
    tmp_path: Path, loop: str
) -> None:
    with upgrading(tmp_path, "--loop", loop) as halfway:
        daemon = halfway.daemon
        status = ask(tmp_path, "status")
        assert (status["pid"], status["sessions"], status["limit"]) == (halfway.old, 3, 4)
        assert [(each["pid"], each["state"]) for each in status["processes"]] == [
            (halfway.processes[0], "draining"),
            (halfway.processes[1], "serving"),
            (halfway.processes[2], "serving"),
        ]
        assert (tmp_path / "pid").read_text() == f"{halfway.old}\n"
        halfway.check_sessions()
        halfway.go_on()
        assert int(daemon.wait_for(TAKEN)[1]) == halfway.new
        daemon.wait_for(rf"serving, pid {halfway.new}$")
        assert (tmp_path / "pid").read_text() == f"{halfway.new}\n"
        halfway.check_sessions()
        ours = children(daemon, 4)
        halfway.check_that_old_ones_accept(*ours[2:])
        for client in halfway.sessions:
            client.quit()
        assert daemon.process.wait(PATIENCE) == 0
        assert not any(map(is_alive, ours[:2]))
        assert [each["pid"] for each in ask(tmp_path, "status")["processes"]] == ours[2:]


# -- failures ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "environment",
    [None, pytest.param(MANAGED, marks=pytest.mark.peers)],
    ids=["on its own", "managed"],
)
def test_if_a_process_cannot_start_the_old_ones_accept_again_and_no_session_ends(
    tmp_path: Path, environment: dict[str, str] | None
) -> None:
    with upgrading(tmp_path, environment=environment) as halfway:
        daemon = halfway.daemon
        halfway.fail()
        line = daemon.wait_for(f"{FAILED}(.*)")[1]
        assert re.fullmatch("process 2 of 2 cannot start: handler .*no moon tonight .*", line)
        halfway.check_sessions()
        halfway.check_that_old_ones_accept(*halfway.processes[:2])
        assert ask(tmp_path, "status")["pid"] == halfway.old
        assert (tmp_path / "pid").read_text() == f"{halfway.old}\n"
        halfway.sessions[2].quit()
        wait_until_gone(halfway.new)
        halfway.check_sessions(0, 1)
        with Successors(daemon) as successors:
            successors.upgrade()
            halfway.check_sessions(0, 1)


@pytest.mark.peers
def test_an_old_process_that_has_ended_meanwhile_is_replaced_when_the_upgrade_fails(
    tmp_path: Path,
) -> None:
    with upgrading(tmp_path) as halfway:
        halfway.sessions[0].quit()
        wait_until_gone(halfway.processes[0])
        halfway.fail()
        halfway.daemon.wait_for(FAILED)
        halfway.check_that_old_ones_accept(halfway.processes[1], children(halfway.daemon, 4)[3])
        halfway.check_sessions(1, 2)


@pytest.mark.peers
def test_a_new_supervisor_that_is_killed_changes_nothing(tmp_path: Path) -> None:
    with upgrading(tmp_path) as halfway:
        os.kill(halfway.new, signal.SIGKILL)
        halfway.daemon.wait_for(f"{FAILED}it ended with status -9")
        halfway.check_that_old_ones_accept(*halfway.processes[:2])
        halfway.check_sessions()
        halfway.sessions[2].quit()
        wait_until_gone(halfway.processes[2])


@pytest.mark.peers
def test_a_new_supervisor_that_hangs_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from smtpd_fork.cli import main, upgrade\n"
        "upgrade.STEP_SECONDS = 3\n"
        "sys.exit(main())\n"
    )
    with upgrading(tmp_path, command=[sys.executable, "-c", script]) as halfway:
        os.kill(halfway.new, signal.SIGSTOP)
        halfway.daemon.wait_for(f"{FAILED}it was not ready in 3 s")
        wait_until_gone(halfway.new)
        halfway.check_that_old_ones_accept(*halfway.processes[:2])
        halfway.check_sessions()


@pytest.mark.peers
def test_a_new_process_that_is_killed_fails_the_upgrade(tmp_path: Path) -> None:
    with upgrading(tmp_path) as halfway:
        pid = halfway.processes[2]
        os.kill(pid, signal.SIGKILL)
        halfway.daemon.wait_for(rf"{FAILED}process 1 \(pid {pid}\) ended by SIGKILL")
        halfway.check_that_old_ones_accept(*halfway.processes[:2])
        halfway.check_sessions(0, 1)
        wait_until_gone(halfway.new)


@pytest.mark.peers
def test_an_old_process_that_is_killed_is_replaced_and_the_upgrade_goes_on(tmp_path: Path) -> None:
    with upgrading(tmp_path) as halfway:
        os.kill(halfway.processes[1], signal.SIGKILL)
        halfway.daemon.wait_for("ended by SIGKILL: starting another one")
        another = children(halfway.daemon, 4)[3]
        halfway.check_that_old_ones_accept(another, halfway.processes[2])
        halfway.go_on()
        assert int(halfway.daemon.wait_for(TAKEN)[1]) == halfway.new
        halfway.check_sessions(0, 2)
        wait_until_gone(another)


def test_an_old_supervisor_that_is_killed_leaves_all_to_the_new_one(tmp_path: Path) -> None:
    with upgrading(tmp_path) as halfway:
        halfway.daemon.process.kill()
        halfway.daemon.wait_for("the supervisor has ended: draining")
        halfway.check_sessions()
        halfway.go_on()
        halfway.daemon.wait_for(rf"serving, pid {halfway.new}$")
        assert (tmp_path / "pid").read_text() == f"{halfway.new}\n"
        assert ask(tmp_path, "status")["pid"] == halfway.new
        halfway.check_that_old_ones_accept(*children(halfway.daemon, 4)[2:])
        halfway.check_sessions()


@pytest.mark.peers
def test_a_new_supervisor_that_is_alone_serves_though_a_process_cannot_start(
    tmp_path: Path,
) -> None:
    with upgrading(tmp_path) as halfway:
        halfway.daemon.process.kill()
        halfway.daemon.wait_for("the supervisor has ended: draining")
        halfway.fail()
        halfway.daemon.wait_for("process 2 of 2 cannot start: .*; the old process has ended")
        halfway.daemon.wait_for(rf"serving, pid {halfway.new}$")
        halfway.check_that_old_ones_accept(*children(halfway.daemon, 4)[2:])
        halfway.check_sessions()


# -- signals and orders meanwhile --------------------------------------------------------------


@pytest.mark.peers
def test_a_second_upgrade_meanwhile_is_refused_by_both(tmp_path: Path) -> None:
    with upgrading(tmp_path) as halfway:
        os.kill(halfway.old, signal.SIGUSR2)
        halfway.daemon.wait_for("WARNING SIGUSR2: an upgrade is in progress already")
        os.kill(halfway.new, signal.SIGUSR2)
        halfway.daemon.wait_for("WARNING SIGUSR2: no upgrade while this process starts or stops")
        halfway.go_on()
        assert int(halfway.daemon.wait_for(TAKEN)[1]) == halfway.new
        halfway.check_sessions()


@pytest.mark.parametrize(
    "told", ["the old supervisor", pytest.param("all processes", marks=pytest.mark.peers)]
)
def test_a_stop_meanwhile_ends_all_once_their_messages_are_in(tmp_path: Path, told: str) -> None:
    with upgrading(tmp_path) as halfway:
        for client in halfway.sessions:
            begin_data(client)
        halfway.daemon.signal(signal.SIGTERM)
        if told == "all processes":  # as systemd does
            for pid in (halfway.new, *halfway.processes):
                os.kill(pid, signal.SIGTERM)
        for pid in halfway.processes:
            halfway.daemon.wait_for(rf"\[{pid}\]: INFO stopping: 1 session open")
        for client in halfway.sessions:
            client.send(b"\r\n.\r\n")
            assert client.getreply()[0] == 250
        assert halfway.daemon.process.wait(PATIENCE) == 0
        wait_until_gone(halfway.new)
        assert not (tmp_path / "pid").exists()


@pytest.mark.peers
def test_a_stop_of_the_new_supervisor_alone_fails_the_upgrade(tmp_path: Path) -> None:
    with upgrading(tmp_path) as halfway:
        begin_data(halfway.sessions[2])
        os.kill(halfway.new, signal.SIGTERM)
        halfway.daemon.wait_for(f"{FAILED}the new process stops")
        halfway.sessions[2].send(b"\r\n.\r\n")
        assert halfway.sessions[2].getreply()[0] == 250
        wait_until_gone(halfway.new)
        halfway.check_that_old_ones_accept(*halfway.processes[:2])
        halfway.check_sessions(0, 1)


@pytest.mark.peers
def test_a_drain_meanwhile_ends_all_with_their_last_sessions(tmp_path: Path) -> None:
    with upgrading(tmp_path) as halfway:
        assert ask(tmp_path, "drain")["state"] == "draining"
        halfway.daemon.wait_for("upgrade given up: the old process has cancelled the upgrade")
        halfway.check_sessions()
        assert halfway.daemon.process.poll() is None
        for client in halfway.sessions:
            client.quit()
        assert halfway.daemon.process.wait(PATIENCE) == 0
        wait_until_gone(halfway.new)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", halfway.daemon.port))


# -- other numbers of processes ----------------------------------------------------------------


@pytest.mark.peers
def test_an_upgrade_changes_the_number_of_processes_and_keeps_what_is_denied(
    tmp_path: Path,
) -> None:
    config = tmp_path / "conf.toml"
    config.write_text("processes = 1\n")
    options = (*LOCAL, "--config", str(config), "--pid-file", "pid", *CONTROL)
    with Daemon(*options, cwd=tmp_path) as daemon, Successors(daemon) as successors:
        says(tmp_path, "deny", "127.0.2.0/24")
        for number in (3, 1, 2):
            config.write_text(f"processes = {number}\n")
            new = successors.upgrade()
            assert (tmp_path / "pid").read_text() == f"{new}\n"
            status = ask(tmp_path, "status")
            assert (status["pid"], status["denied"]) == (new, 1)
            assert len(status.get("processes", [])) == (number if number > 1 else 0)
            for _ in range(4):
                with socket.create_connection(
                    ("127.0.0.1", daemon.port), PATIENCE, ("127.0.2.1", 0)
                ) as sock:
                    assert sock.recv(4) == b"554 "
            daemon.deliver()
