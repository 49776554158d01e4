"""Upgrades with --processes: the processes are replaced one by one, or an error changes nothing."""

from __future__ import annotations

import os
import re
import signal
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from support.control import CONTROL, ask, says
from support.daemon import (
    LOCAL,
    PATIENCE,
    Daemon,
    Detached,
    Process,
    is_alive,
    on_both_loops,
    until,
    wait_until_gone,
)
from support.dialogue import begin_data
from support.halfway import FAILED, upgrading
from support.manager import Manager
from support.supervised import children
from support.upgrades import TAKEN, Successors

if TYPE_CHECKING:
    from pathlib import Path

MANAGED = {"NOTIFY_SOCKET": "@no-manager-answers"}
"""With it the new supervisor leaves its parent, as it does under systemd."""


# -- the upgrade -------------------------------------------------------------------------------


def main_pids(manager: Manager) -> list[str]:
    """Return the main processes that were reported to the service manager."""
    with suppress(BlockingIOError):
        while data := manager.sock.recv(65536, socket.MSG_DONTWAIT):
            manager.messages.append(dict(line.split("=", 1) for line in data.decode().split("\n")))
    return [message["MAINPID"] for message in manager.messages if "MAINPID" in message]


@on_both_loops
def test_processes_are_replaced_one_by_one_and_pid_file_and_sockets_after_the_last(
    tmp_path: Path, loop: str
) -> None:
    address = str(tmp_path / "manager")
    with (
        Manager(address) as manager,
        upgrading(tmp_path, "--loop", loop, environment={"NOTIFY_SOCKET": address}) as halfway,
    ):
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
        assert main_pids(manager) == []
        halfway.go_on()
        assert int(daemon.wait_for(TAKEN)[1]) == halfway.new
        assert manager.wait_for_field("MAINPID")["MAINPID"] == str(halfway.new)
        manager.wait_for_field("READY")
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
def test_old_processes_accept_again_and_no_session_ends_if_a_new_process_cannot_start(
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
        with Successors(daemon) as successors:
            successors.upgrade()
            halfway.check_sessions()
            assert ask(tmp_path, "status")["sessions"] == 3, (
                "including the one of the failed upgrade"
            )
            for client in halfway.sessions:
                client.quit()
            wait_until_gone(halfway.new)
            assert daemon.process.wait(PATIENCE) == 0


@pytest.mark.peers
def test_an_old_process_that_has_ended_is_restarted_when_the_upgrade_fails(
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
def test_the_upgrade_fails_if_a_new_process_is_killed(tmp_path: Path) -> None:
    with upgrading(tmp_path) as halfway:
        pid = halfway.processes[2]
        os.kill(pid, signal.SIGKILL)
        halfway.daemon.wait_for(rf"{FAILED}process 1 \(pid {pid}\) ended by SIGKILL")
        halfway.check_that_old_ones_accept(*halfway.processes[:2])
        halfway.check_sessions(0, 1)
        wait_until_gone(halfway.new)


@pytest.mark.peers
def test_an_old_process_that_is_killed_is_restarted_and_the_upgrade_continues(
    tmp_path: Path,
) -> None:
    with upgrading(tmp_path) as halfway:
        os.kill(halfway.processes[1], signal.SIGKILL)
        halfway.daemon.wait_for("ended by SIGKILL: starting another one")
        another = children(halfway.daemon, 4)[3]
        halfway.check_that_old_ones_accept(another, halfway.processes[2])
        halfway.go_on()
        assert int(halfway.daemon.wait_for(TAKEN)[1]) == halfway.new
        halfway.check_sessions(0, 2)
        wait_until_gone(another)


def test_the_new_supervisor_completes_the_upgrade_if_the_old_one_is_killed(tmp_path: Path) -> None:
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
def test_the_new_supervisor_serves_without_the_old_one_even_if_a_process_cannot_start(
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


# -- signals and orders during an upgrade -------------------------------------------------------


@pytest.mark.peers
def test_both_supervisors_refuse_a_second_upgrade_during_an_upgrade(tmp_path: Path) -> None:
    with upgrading(tmp_path) as halfway:
        os.kill(halfway.old, signal.SIGUSR2)
        halfway.daemon.wait_for("WARNING SIGUSR2: an upgrade is in progress already")
        os.kill(halfway.new, signal.SIGUSR2)
        halfway.daemon.wait_for("WARNING SIGUSR2: no upgrade while this process starts or stops")
        halfway.go_on()
        assert int(halfway.daemon.wait_for(TAKEN)[1]) == halfway.new
        halfway.check_sessions()


@pytest.mark.parametrize(
    "signalled", ["the old supervisor", pytest.param("all processes", marks=pytest.mark.peers)]
)
def test_a_stop_during_an_upgrade_ends_all_processes_after_messages_in_progress(
    tmp_path: Path, signalled: str
) -> None:
    with upgrading(tmp_path) as halfway:
        for client in halfway.sessions:
            begin_data(client)
        halfway.daemon.signal(signal.SIGTERM)
        if signalled == "all processes":  # as systemd does
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
def test_the_upgrade_fails_if_the_new_supervisor_alone_is_stopped(tmp_path: Path) -> None:
    with upgrading(tmp_path) as halfway:
        begin_data(halfway.sessions[2])
        os.kill(halfway.new, signal.SIGTERM)
        halfway.daemon.wait_for(f"{FAILED}the new process was stopped")
        halfway.sessions[2].send(b"\r\n.\r\n")
        assert halfway.sessions[2].getreply()[0] == 250
        wait_until_gone(halfway.new)
        halfway.check_that_old_ones_accept(*halfway.processes[:2])
        halfway.check_sessions(0, 1)


@pytest.mark.peers
def test_after_a_drain_during_an_upgrade_all_processes_end_with_their_last_sessions(
    tmp_path: Path,
) -> None:
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
def test_an_upgrade_changes_the_number_of_processes_and_keeps_denied_networks(
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


@pytest.mark.peers
def test_old_processes_stop_accepting_in_proportion_to_the_new_ones_that_serve(
    tmp_path: Path,
) -> None:
    config = tmp_path / "conf.toml"
    config.write_text("processes = 2\n")
    options = (*LOCAL, "--config", str(config), *CONTROL)
    with Daemon(*options, cwd=tmp_path) as daemon, Successors(daemon) as successors:
        expected, before = [], 2
        for number in (4, 3, 3):
            config.write_text(f"processes = {number}\n")
            successors.upgrade()
            expected += [
                (k, number, before - before * k // number, before) for k in range(1, number + 1)
            ]
            before = number
        steps = re.findall(r"(\d) of (\d) new .* and (\d) of (\d) old ones", daemon.log)
        assert [tuple(map(int, step)) for step in steps] == expected


@pytest.mark.peers
@pytest.mark.parametrize("detach", [False, True], ids=["in front", "detached"])
def test_another_user_replaces_processes_one_by_one(
    public: Path, command_for_nobody: list[str], *, detach: bool
) -> None:
    options = (*LOCAL, "--processes", "2", "--user", "nobody", "--pid-file", "pid", *CONTROL)
    kind = Detached if detach else Daemon
    with kind(*options, cwd=public, command=command_for_nobody):
        old = int((public / "pid").read_text())
        os.kill(old, signal.SIGUSR2)
        until(
            lambda: (public / "pid").read_text() not in {"", f"{old}\n"},
            "the new supervisor has the pid file",
        )
        new = int((public / "pid").read_text())
        try:
            wait_until_gone(old)
            status = ask(public, "status")
            assert status["pid"] == new
            for pid in (new, *(each["pid"] for each in status["processes"])):
                assert Process(pid).status["Uid"] == ["65534"] * 4
        finally:
            os.kill(new, signal.SIGTERM)
            wait_until_gone(new)
        assert not (public / "pid").exists()


@pytest.mark.peers
def test_a_reload_during_an_upgrade_waits_and_has_no_effect(tmp_path: Path) -> None:
    with upgrading(tmp_path) as halfway:
        halfway.daemon.signal(signal.SIGHUP)
        halfway.daemon.wait_for("SIGHUP: reloading the configuration")
        halfway.go_on()
        halfway.daemon.wait_for(TAKEN)
        halfway.daemon.wait_for("ERROR .*a new process has replaced this one")
        halfway.check_sessions()
