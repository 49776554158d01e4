"""Several processes under load: reloads, upgrades, kills and a drain lose no message."""

from __future__ import annotations

import os
import re
import signal
import smtplib
import threading
from typing import TYPE_CHECKING

import pytest
from support.control import CONTROL, ask, says
from support.daemon import (
    PATIENCE,
    Daemon,
    until,
)
from support.supervised import COUNTING, PATIENT, TWO
from support.upgrades import Load, Successors

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.peers


def test_reloads_and_upgrades_lose_no_message_and_refuse_no_connection(tmp_path: Path) -> None:
    (tmp_path / "counting.py").write_text(COUNTING)
    taken = tmp_path / "taken"
    options = ("-l", "127.0.0.1:0", "-m", "0", "--processes", "2", "--handler", "counting:Handler")

    def count() -> int:
        return taken.read_text().count("\n") if taken.exists() else 0

    with Daemon(*options, *PATIENT, "--pid-file", "pid", cwd=tmp_path) as daemon:
        with Load(daemon.port) as load, Successors(daemon) as successors:
            for _ in range(2):
                before = count()
                until(lambda least=before + 200: count() >= least, "mail arrives")  # type: ignore[misc]
                pid = int((tmp_path / "pid").read_text())
                os.kill(pid, signal.SIGHUP)
                daemon.wait_for(rf"\[{pid}\]: INFO configuration reloaded")
                successors.upgrade()
            load.finish()
        assert load.faults == []
        assert count() == load.sent
        assert len(set(taken.read_text().split())) >= 4, (
            "old and new processes have received messages"
        )
        assert "Traceback" not in daemon.log
        assert not re.findall(r".*(?:WARNING refused|ERROR).*", daemon.log)


FAILING = """
import pathlib

starts = os.open("starts", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
os.write(starts, b"-")
if pathlib.Path("broken").exists() and os.fstat(starts).st_size % 2 == 0:
    raise ValueError("no moon tonight")
"""
"""A handler that makes every second start fail, if the test asks for it."""


def test_upgrades_that_fail_halfway_lose_no_message_and_refuse_no_connection(
    tmp_path: Path,
) -> None:
    (tmp_path / "counting.py").write_text(COUNTING + FAILING)
    taken = tmp_path / "taken"
    options = ("-l", "127.0.0.1:0", "-m", "0", "--processes", "2", "--handler", "counting:Handler")

    def count() -> int:
        return taken.read_text().count("\n") if taken.exists() else 0

    with Daemon(*options, "--pid-file", "pid", cwd=tmp_path) as daemon:
        (tmp_path / "broken").touch()
        with Load(daemon.port) as load, Successors(daemon) as successors:
            for number in range(1, 4):
                before = count()
                until(lambda least=before + 200: count() >= least, "mail arrives")  # type: ignore[misc]
                daemon.signal(signal.SIGUSR2)
                until(lambda so_many=number: failures(daemon) == so_many, "it fails")  # type: ignore[misc]
            (tmp_path / "broken").unlink()
            successors.upgrade()
            load.finish()
        assert load.faults == []
        assert count() == load.sent
        assert "upgrade: 1 of 2 new processes serve" in daemon.log
        assert "Traceback" not in daemon.log
        assert "WARNING refused" not in daemon.log


def failures(daemon: Daemon) -> int:
    """Return how many upgrades have failed."""
    return daemon.log.count("upgrade failed, this process continues: ")


def test_killed_processes_lose_their_sessions_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "counting.py").write_text(COUNTING)
    options = ("-l", "127.0.0.1:0", "-m", "0", "--processes", "2", "--handler", "counting:Handler")
    outcomes: list[str] = []
    over = threading.Event()

    def send(port: int) -> None:
        while not over.is_set():
            try:
                with smtplib.SMTP("127.0.0.1", port, timeout=PATIENCE) as client:
                    client.sendmail("a@example.com", ["b@example.com"], "Subject: hi\r\n\r\nhi\r\n")
                outcomes.append("accepted")
            except (smtplib.SMTPServerDisconnected, ConnectionResetError):
                outcomes.append("lost")
            except OSError as error:
                outcomes.append(repr(error))

    with Daemon(*options, *CONTROL, cwd=tmp_path) as daemon:
        senders = [threading.Thread(target=send, args=(daemon.port,)) for _ in range(6)]
        for sender in senders:
            sender.start()
        for number in range(6):
            count = len(outcomes)
            until(lambda least=count + 50: len(outcomes) > least, "mail arrives")  # type: ignore[misc]
            processes = ask(tmp_path, "status")["processes"]
            os.kill(processes[number % len(processes)]["pid"], signal.SIGKILL)
            until(lambda: len(ask(tmp_path, "status")["processes"]) == 2, "there are two again")
        over.set()
        for sender in senders:
            sender.join()
        taken = (tmp_path / "taken").read_text().count("\n")
        accepted, lost = outcomes.count("accepted"), outcomes.count("lost")
        assert accepted + lost == len(outcomes), set(outcomes)
        assert lost <= 6 * len(senders)
        assert accepted <= taken <= accepted + lost


def test_a_drain_under_load_cuts_off_no_session(tmp_path: Path) -> None:
    with Daemon(*TWO, *CONTROL, cwd=tmp_path) as daemon:
        clients = [daemon.smtp() for _ in range(10)]
        assert "draining" in says(tmp_path, "drain")
        daemon.wait_for("draining: .* open")
        for client in clients:
            client.sendmail("a@example.com", ["b@example.com"], "Subject: hi\r\n\r\nhello\r\n")
            client.quit()
        assert daemon.process.wait(PATIENCE) == 0
