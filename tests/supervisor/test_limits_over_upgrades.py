"""Limits, denials, sessions and metrics that two supervisors share during and after an upgrade."""

from __future__ import annotations

import signal
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from support.control import CONTROL, ask
from support.daemon import LOCAL, PATIENCE, Daemon, until
from support.supervised import PATIENT, attempt_auth, children, figures, greetings, limit_failures
from support.upgrades import TAKEN, Successors

if TYPE_CHECKING:
    from pathlib import Path


TWO = (*LOCAL, *PATIENT, "--processes", "2", *CONTROL)


def test_limits_apply_to_old_and_new_processes_together_until_the_old_ones_have_ended(
    tmp_path: Path,
) -> None:
    options = (*TWO, "-m", "6", "--rate", "20/h", "--max-from-net", "8/24")
    with Daemon(*options, cwd=tmp_path) as daemon, Successors(daemon) as successors:
        with ExitStack() as old, ExitStack() as new:
            assert greetings(daemon, 4, old) == 4
            assert greetings(daemon, 1, old, "127.0.0.9") == 1
            until(lambda: ask(tmp_path, "status")["sessions"] == 5, "all are admitted")
            successors.upgrade()
            assert ask(tmp_path, "status")["sessions"] == 5
            assert greetings(daemon, 5, new) == 2, "two more sessions of this client"
            assert greetings(daemon, 5, new, "127.0.0.9") == 1, "one more of the network"
            successors.upgrade()
            assert ask(tmp_path, "status")["sessions"] == 8
            assert greetings(daemon, 3, new, "127.0.0.8") == 0, "no more sessions of the network"
            old.close()
            until(lambda: ask(tmp_path, "status")["sessions"] == 3, "the oldest have disconnected")
            for _ in range(5):
                until(lambda: greetings(daemon, 1, new, "127.0.0.9"), "their slots are free")
            assert greetings(daemon, 9, new, "127.0.0.9") == 0, "and not more"
        until(lambda: ask(tmp_path, "status")["sessions"] == 0, "all clients have disconnected")
        greeted = [4, 2]

        def have_come() -> int:
            with ExitStack() as more:
                greeted.append(greetings(daemon, 5, more))
            return sum(greeted)

        until(lambda: have_come() >= 20, "all that the rate allows")
        until(lambda: ask(tmp_path, "status")["sessions"] == 0, "all clients have disconnected")
        assert have_come() == 20, "the rate counts earlier sessions"
        assert daemon.process.wait(PATIENCE) == 0


def test_failed_attempts_and_log_ins_of_a_user_count_after_an_upgrade(tmp_path: Path) -> None:
    limits = limit_failures(tmp_path, "max-failures = 0\nmax-user-failures = 4")
    with (
        Daemon(*limits, *PATIENT, "--processes", "2", cwd=tmp_path) as daemon,
        Successors(daemon) as successors,
    ):

        def attempt(password: str, source: str = "127.0.0.1") -> int:
            with daemon.smtp(source=source) as client:
                return attempt_auth(client, password)

        assert attempt("right", "127.0.0.9") == 235
        assert [attempt(f"guess {number}") for number in range(3)] == [535] * 3
        successors.upgrade()
        codes = [attempt(f"guess {number}") for number in range(3, 15)]
        assert set(codes) == {535, 454}
        assert codes.count(535) <= 2, "one, and one more at the process that does not know it yet"
        assert {attempt("right", "127.0.0.9") for _ in range(6)} == {235}
        assert daemon.process.wait(PATIENCE) == 0


def test_sessions_of_old_processes_take_no_slots_of_new_ones(tmp_path: Path) -> None:
    with (
        Daemon(*TWO, "-c", "4", "--when-full", "refuse", "-m", "0", cwd=tmp_path) as daemon,
        Successors(daemon) as successors,
        ExitStack() as clients,
    ):
        for sessions in (4, 8):
            until(lambda: greetings(daemon, 1, clients) == 0, "all slots are in use")
            assert ask(tmp_path, "status")["sessions"] == sessions
            successors.upgrade()
        clients.close()
        assert daemon.process.wait(PATIENCE) == 0


def test_sessions_of_old_processes_are_listed_kicked_and_counted(tmp_path: Path) -> None:
    options = (*TWO, "--metrics", "127.0.0.1:0")
    with Daemon(*options, cwd=tmp_path) as daemon, Successors(daemon) as successors:
        clients = [daemon.smtp(source=f"127.0.1.{n}") for n in (1, 2, 3)]
        listed = [each["id"] for each in ask(tmp_path, "sessions")["sessions"]]
        clients[0].sendmail("a@example.com", ["b@example.com"], "Subject: hi\r\n\r\nhello\r\n")
        new = successors.upgrade()
        status = ask(tmp_path, "status")
        assert (status["pid"], status["sessions"], status["clients"]) == (new, 3, 3)
        assert status["messages"] == {}, "the counts are those of the new processes"
        states = [each["state"] for each in status["processes"]]
        assert states[:2] == ["serving", "serving"]
        assert set(states[2:]) == {"draining"}
        assert [each["id"] for each in ask(tmp_path, "sessions")["sessions"]] == listed
        seen = figures(daemon)
        assert seen["smtpd_fork_sessions", "command"] == 3
        assert seen["smtpd_fork_sessions_limit",] == 1000
        assert seen["smtpd_fork_processes",] == 2
        assert seen["smtpd_fork_admissions_total",] == 0
        assert ask(tmp_path, "kick", id=listed[0])["kicked"] == 1
        until(lambda: ask(tmp_path, "status")["sessions"] == 2, "it has ended")
        assert ask(tmp_path, "kick", client="127.0.1.0/24")["kicked"] == 2
        for client in clients:
            client.close()
        assert daemon.process.wait(PATIENCE) == 0
        until(lambda: len(ask(tmp_path, "status")["processes"]) == 2, "the old ones have ended")


@pytest.mark.peers
def test_a_network_denied_during_an_upgrade_is_denied_by_new_processes(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    options = ("-l", "127.0.0.1:0", *TWO[4:], "--handler", "slow:Handler")
    with Daemon(*options, cwd=tmp_path) as daemon, Successors(daemon) as successors:
        assert ask(tmp_path, "deny", network="127.0.3.0/24")["ok"]
        (tmp_path / "wait").touch()
        daemon.signal(signal.SIGUSR2)
        until((tmp_path / "starts").exists, "a new process starts")
        assert ask(tmp_path, "deny", network="127.0.2.0/24")["ok"]
        assert ask(tmp_path, "undeny", network="127.0.3.0/24")["ok"]
        (tmp_path / "wait").unlink()
        successors.pids.append(int(daemon.wait_for(TAKEN)[1]))
        daemon.wait_for(f"serving, pid {successors.pids[0]}$")
        for pid in children(daemon, 4)[2:]:
            assert pid in {each["pid"] for each in ask(tmp_path, "status")["processes"]}
        assert [each["network"] for each in ask(tmp_path, "denials")["denials"]] == ["127.0.2.0/24"]
        with ExitStack() as clients:
            for _ in range(10):
                assert greetings(daemon, 1, clients, "127.0.2.1", refused=b"554 ") == 0
                assert greetings(daemon, 1, clients, "127.0.3.1") == 1
        assert ask(tmp_path, "undeny", network="127.0.2.0/24")["ok"]


SLOW = """
import os
import time

if os.path.exists("wait"):
    open("starts", "w").close()
while os.path.exists("wait"):
    time.sleep(0.01)


class Handler:
    async def handle_DATA(self, server, session, envelope):
        return "250 taken"
"""


@pytest.mark.peers
def test_a_new_process_with_another_protocol_replaces_all_at_once_and_shares_nothing(
    tmp_path: Path,
) -> None:
    script = (
        "import pathlib, sys\n"
        "from smtpd_fork.cli import main, startup_resources\n"
        "if pathlib.Path('newer').exists():\n"
        "    startup_resources.PROTOCOL += 1\n"
        "sys.exit(main())\n"
    )
    command = [sys.executable, "-c", script]
    with (
        Daemon(*TWO, "-m", "4", cwd=tmp_path, command=command) as daemon,
        Successors(daemon) as successors,
        ExitStack() as clients,
    ):
        assert greetings(daemon, 4, clients) == 4
        (tmp_path / "newer").touch()
        successors.upgrade()
        assert "new processes serve" not in daemon.log
        assert ask(tmp_path, "status")["sessions"] == 0
        assert greetings(daemon, 9, clients) == 4
        clients.close()
        assert daemon.process.wait(PATIENCE) == 0
        until(
            lambda: greetings(daemon, 1, clients), "the supervisor knows that all have disconnected"
        )
