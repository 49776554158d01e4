"""Failed upgrades: the old process continues to serve, and logs the reason."""

from __future__ import annotations

import re
import resource
import signal
import sys
from typing import TYPE_CHECKING

import pytest
from support.daemon import (
    LOCAL,
    PATIENCE,
    Daemon,
    run,
    until,
    wait_until_gone,
)
from support.dialogue import begin_data, last_word
from support.place import only_line
from support.processes import children
from support.upgrades import TAKEN, Successors

from smtpd_fork.daemon.handover import HANDOVER_VARIABLE
from smtpd_fork.errors import ExitStatus

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GATED = """
import os, pathlib, time

pathlib.Path("pid").write_text(f"{os.getpid()}\\n")
while pathlib.Path("wait").exists():
    time.sleep(0.01)
if pathlib.Path("broken").exists():
    raise SystemExit(pathlib.Path("broken").read_text())


class Handler:
    async def handle_DATA(self, server, session, envelope):
        return "250 taken"
"""
"""A handler whose import can be made slow or made to fail."""


MANAGED = {"NOTIFY_SOCKET": "@no-manager-answers"}
"""With this variable the new process forks and leaves its parent, as under systemd."""

on_its_own_and_under_a_manager = pytest.mark.parametrize(
    "environment", [None, MANAGED], ids=["on its own", "managed"]
)


@pytest.fixture(params=[None, MANAGED], ids=["on its own", "managed"])
def gated(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Daemon]:
    (tmp_path / "gated.py").write_text(GATED)
    options = ("-l", "127.0.0.1:0", "-l", "unix:smtp.sock", "--pid-file", "daemon.pid")
    handler = ("--handler", "gated:Handler")
    with Daemon(*options, *handler, cwd=tmp_path, environment=request.param) as daemon:
        yield daemon


def test_a_new_process_that_cannot_start_changes_nothing(tmp_path: Path, gated: Daemon) -> None:
    client = gated.smtp()
    (tmp_path / "broken").write_text("no moon tonight")
    for _ in range(2):
        gated.signal(signal.SIGUSR2)
        line = gated.wait_for("ERROR upgrade failed, this process continues: (.*)")[1]
        assert "handler 'gated:Handler': cannot import gated" in line
        assert "no moon tonight" in line
        gated.lines.clear()
    assert (tmp_path / "daemon.pid").read_text() == f"{gated.process.pid}\n"
    assert (tmp_path / "smtp.sock").exists()
    assert client.noop()[0] == 250
    (tmp_path / "broken").unlink()
    client.quit()
    with Successors(gated) as successors:
        successors.upgrade()
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
def test_the_failure_of_a_new_process_is_logged(tmp_path: Path, fault: str, says: str) -> None:
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
        line = daemon.wait_for("ERROR upgrade failed, this process continues: (.*)")[1]
        assert re.search(says, line)
        assert len(line) < 5000
        daemon.deliver()
        assert (tmp_path / "daemon.pid").read_text() == f"{daemon.process.pid}\n"
        assert daemon.stop() == 0


@pytest.mark.parametrize(
    ("fault", "status"), [("os._exit(3)", 3), ("os.kill(os.getpid(), 9)", 137)]
)
def test_under_a_service_manager_the_end_of_a_new_process_is_logged(
    fault: str, status: int, tmp_path: Path
) -> None:
    (tmp_path / "gated.py").write_text(GATED)
    options = ("-l", "127.0.0.1:0", "--handler", "gated:Handler", "--handler", "discard")
    with Daemon(*options, cwd=tmp_path, environment=MANAGED) as daemon:
        (tmp_path / "gated.py").write_text(f"import os\n{fault}")
        daemon.signal(signal.SIGUSR2)
        daemon.wait_for(
            f"ERROR upgrade failed, this process continues: it ended with status {status}$"
        )
        daemon.deliver()


@on_its_own_and_under_a_manager
def test_a_new_process_that_takes_too_long_is_ended(
    environment: dict[str, str] | None, tmp_path: Path
) -> None:
    (tmp_path / "gated.py").write_text(GATED)
    script = (
        "import sys\n"
        "from smtpd_fork.cli import main, upgrade\n"
        "upgrade.START_SECONDS = 1.5\n"
        "sys.exit(main())\n"
    )
    options = ("-l", "127.0.0.1:0", "--handler", "gated:Handler")
    command = [sys.executable, "-c", script]
    with Daemon(*options, cwd=tmp_path, command=command, environment=environment) as daemon:
        (tmp_path / "wait").touch()
        daemon.signal(signal.SIGUSR2)
        daemon.wait_for(r"ERROR upgrade failed, this process continues: it was not ready in 1.5 s")
        wait_until_gone(int((tmp_path / "pid").read_text()))
        until(lambda: not children(daemon.process.pid), "its parent has ended")
        (tmp_path / "wait").unlink()
        daemon.deliver()


def test_a_second_signal_during_an_upgrade_is_only_logged(tmp_path: Path, gated: Daemon) -> None:
    (tmp_path / "wait").touch()
    gated.signal(signal.SIGUSR2)
    gated.wait_for("SIGUSR2: upgrade, starting a new process")
    gated.signal(signal.SIGUSR2)
    gated.wait_for("WARNING SIGUSR2: an upgrade is in progress already")
    (tmp_path / "wait").unlink()
    with Successors(gated) as successors:
        successors.pids.append(int(gated.wait_for(TAKEN)[1]))
        assert gated.process.wait(PATIENCE) == 0
        gated.deliver()


def test_a_stop_during_an_upgrade_ends_both_processes(tmp_path: Path, gated: Daemon) -> None:
    pid = tmp_path / "pid"
    pid.unlink()
    (tmp_path / "wait").touch()
    gated.signal(signal.SIGUSR2)
    until(
        lambda: pid.exists() and pid.read_text()[-1:] == "\n", "the new process loads its handler"
    )
    assert gated.stop() == 0
    wait_until_gone(int(pid.read_text()))
    assert not (tmp_path / "daemon.pid").exists()
    assert not (tmp_path / "smtp.sock").exists()


def test_a_stopping_process_starts_no_upgrade(tmp_path: Path) -> None:
    with Daemon(*LOCAL, cwd=tmp_path) as daemon:
        client = daemon.smtp()
        begin_data(client)
        daemon.signal(signal.SIGTERM)
        daemon.wait_for("stopping: 1 session open")
        daemon.signal(signal.SIGUSR2)
        daemon.wait_for("WARNING SIGUSR2: no upgrade while this process starts or stops")
        client.send(b"\r\n.\r\n")
        assert client.getreply()[0] == 250
        assert last_word(client) == (421, b"4.3.2")
        assert daemon.process.wait(PATIENCE) == 0


def test_an_upgrade_fails_without_descriptors_and_succeeds_later(tmp_path: Path) -> None:
    with Daemon(*LOCAL, cwd=tmp_path) as daemon, Successors(daemon) as successors:
        pid = daemon.process.pid
        limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, limits[1]))
        daemon.signal(signal.SIGUSR2)
        daemon.wait_for("ERROR upgrade failed, this process continues: .*Too many open files")
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        successors.upgrade()
        assert daemon.process.wait(PATIENCE) == 0


@pytest.mark.parametrize("value", ["", "x", "{}", '{"parent": 1, "stderr": 2}', "[" * 10000])
def test_a_handover_variable_for_another_process_is_an_error_in_one_line(
    tmp_path: Path, value: str
) -> None:
    ended = run(*LOCAL, cwd=tmp_path, environment={HANDOVER_VARIABLE: value})
    assert ended.returncode == ExitStatus.USAGE
    assert HANDOVER_VARIABLE in only_line(ended)
