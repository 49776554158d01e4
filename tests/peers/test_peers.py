"""Missing requirements skip tests, fail them in CI, and are listed at the end of a run."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest
from support import peers
from support.daemon import clean_environment
from support.installation import ROOT

if TYPE_CHECKING:
    from pathlib import Path

SKIPPED, FAILED = pytest.skip.Exception, pytest.fail.Exception


@pytest.fixture(autouse=True)
def at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "IN_CI", False)


def test_all_missing_programs_are_named() -> None:
    with pytest.raises(SKIPPED, match=r"^no-such is not installed; nor-this is not installed$"):
        peers.peers("no-such", "sh", "nor-this")


def test_in_ci_a_missing_program_fails_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "IN_CI", True)
    with pytest.raises(FAILED, match="no-such is not installed"):
        peers.peer("no-such")


def test_a_program_that_was_not_checked_is_not_started() -> None:
    with pytest.raises(AssertionError, match="starts ls without a check"):
        subprocess.run(["ls"], check=False)
    subprocess.run([peers.peer("ls")], check=True, stdout=subprocess.DEVNULL)


def test_a_program_that_the_test_created_needs_no_check(tmp_path: Path) -> None:
    program = tmp_path / "own"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    subprocess.run([program], check=True)


def test_a_thread_cannot_be_the_first_to_check() -> None:
    raised: list[BaseException] = []

    def ask() -> None:
        try:
            peers.peer("no-such")
        except BaseException as error:  # noqa: BLE001 - a skip in a thread would skip no test
            raised.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert isinstance(raised[0], AssertionError)


def test_the_table_counts_each_missing_requirement() -> None:
    reasons = [
        "Skipped: swaks is not installed; nc is not installed",
        "Skipped: nc is not installed",
    ]
    assert peers.table(reasons) == ["    2  nc is not installed", "    1  swaks is not installed"]


@pytest.mark.timeout(180)  # It is a separate run of pytest.
def test_a_run_ends_with_the_table(tmp_path: Path) -> None:
    pytest_ = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--numprocesses", "1"]
    ended = subprocess.run(
        [*pytest_, f"--basetemp={tmp_path / 'base'}", "tests/smtp/test_lmtp.py", "-k", "swaks"],
        cwd=ROOT,
        env={
            **{k: v for k, v in clean_environment().items() if not k.startswith("PYTEST_")},
            "PATH": "/nonexistent",
            "CI": "",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    *_, head, row, last = ended.stdout.splitlines()
    assert "absent here" in head, ended.stdout
    assert row.endswith("  swaks is not installed")
    assert f"{row.split()[0]} skipped" in last
