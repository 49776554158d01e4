"""Upgrades with --processes while one of the two supervisors is killed, or is stopped."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from support.daemon import until, wait_until_gone
from support.halfway import FAILED, upgrading
from support.supervised import children
from support.upgrades import TAKEN


@pytest.mark.peers
def test_a_new_supervisor_that_is_killed_changes_nothing(tmp_path: Path) -> None:
    with upgrading(tmp_path) as halfway:
        os.kill(halfway.new, signal.SIGKILL)
        halfway.daemon.wait_for(f"{FAILED}it ended with status -9")
        halfway.check_that_old_ones_accept(*halfway.processes[:2])
        halfway.check_sessions()
        halfway.sessions[2].quit()
        wait_until_gone(halfway.processes[2])


IMPATIENT = (
    "import sys\n"
    "from smtpd_fork.cli import main, upgrade\n"
    "upgrade.STEP_SECONDS = 3\n"
    "sys.exit(main())\n"
)


@pytest.mark.peers
def test_an_old_supervisor_that_was_stopped_itself_completes_the_upgrade(tmp_path: Path) -> None:
    with upgrading(tmp_path, command=[sys.executable, "-c", IMPATIENT]) as halfway:
        os.kill(halfway.old, signal.SIGSTOP)
        halfway.go_on()
        children(halfway.daemon, 4)
        time.sleep(3)  # its timer ends, and the new supervisor has said that all processes serve
        os.kill(halfway.old, signal.SIGCONT)
        assert int(halfway.daemon.wait_for(TAKEN)[1]) == halfway.new
        halfway.check_sessions()


@pytest.mark.peers
def test_a_new_supervisor_that_hangs_is_killed(tmp_path: Path) -> None:
    with upgrading(tmp_path, command=[sys.executable, "-c", IMPATIENT]) as halfway:
        os.kill(halfway.new, signal.SIGSTOP)
        halfway.daemon.wait_for(f"{FAILED}it was not ready in 3 s")
        wait_until_gone(halfway.new)
        halfway.check_that_old_ones_accept(*halfway.processes[:2])
        halfway.check_sessions()


@pytest.mark.peers
def test_a_new_supervisor_that_is_killed_after_the_upgrade_failed_leaves_no_zombie(
    tmp_path: Path,
) -> None:
    with upgrading(tmp_path) as halfway:
        halfway.sessions[0].quit()
        wait_until_gone(halfway.processes[0])
        (tmp_path / "wait-5").touch()
        os.kill(halfway.processes[2], signal.SIGKILL)
        until(lambda: (tmp_path / "started").stat().st_size == 2 * 5, "an old one starts again")
        os.kill(halfway.new, signal.SIGKILL)
        (tmp_path / "wait-5").unlink()
        halfway.daemon.wait_for(FAILED)
        until(lambda: not Path(f"/proc/{halfway.new}").exists(), "it is reaped")
