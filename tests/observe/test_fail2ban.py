"""The fail2ban filter finds the right clients in a real log, and no others."""

from __future__ import annotations

import re
import shutil
import smtplib
import subprocess
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import pytest
from support.daemon import LOCAL, Daemon
from support.installation import ROOT
from support.peers import peer

if TYPE_CHECKING:
    from pathlib import Path

FILTER = ROOT / "packaging/fail2ban/smtpd-fork.conf"

HANDLER = '''
class Closed:
    """Relays nothing, and knows nobody."""

    async def handle_RCPT(self, server, session, envelope, address, options):
        return "550 5.7.1 We do not relay"

'''

HOSTILE = "x> helo=<x> INFO rejected AUTH from 203.0.113.66 [a-1]: 535 5.7.8 no"
"""A name by which a client tries to put another address into the log."""


def found(mode: str, log: Path) -> set[str]:
    """Return the addresses that the filter finds."""
    settings = log.parent / "etc"
    shutil.copytree("/etc/fail2ban", settings, dirs_exist_ok=True)
    shutil.copy(FILTER, settings / "filter.d")
    name = f"smtpd-fork[mode={mode}]"
    command = [peer("fail2ban-regex"), "-c", str(settings), "-o", "ip", str(log), name]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert not ended.stderr, ended.stderr
    return set(ended.stdout.split())


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a daemon refuse a client for each reason, each client with its own address."""
    peer("fail2ban-regex")
    folder = tmp_path_factory.mktemp("fail2ban")
    (folder / "closed.py").write_text(HANDLER)
    with Daemon(
        *LOCAL, "--handler", "closed:Closed", "--deny", "127.0.0.6", "--max-errors", "2", cwd=folder
    ) as daemon:
        for client, commands in {
            "127.0.0.2": ["EHLO x", "MAIL FROM:<a@example.com>", "RCPT TO:<b@example.net>"],
            "127.0.0.3": ["nonsense"] * 3,
            "127.0.0.4": ["EHLO x", "RCPT TO:<b@example.net>"],
            "127.0.0.5": [f"EHLO {HOSTILE}", "RCPT TO:<b@example.net>"],
            "127.0.0.6": [],
            "127.0.0.7": ["EHLO x", "NOOP"],
        }.items():
            with (
                suppress(smtplib.SMTPException, OSError),
                closing(smtplib.SMTP("127.0.0.1", daemon.port, source_address=(client, 0))) as smtp,
            ):
                for command in commands:
                    smtp.docmd(command)
    path = folder / "log"
    path.write_text(daemon.log)
    return path


def test_normal_mode_finds_refused_relaying_and_too_many_errors(log: Path) -> None:
    assert found("normal", log) == {"127.0.0.2", "127.0.0.3"}


def test_lines_in_the_journal_are_found_as_well(log: Path, tmp_path: Path) -> None:
    """They begin in the format of journalctl and of the backend of fail2ban, without a level."""
    journal = tmp_path / "journal"
    begin = re.compile(r"^\S+ ([\d:]+),\d+ [A-Z]+ ", re.MULTILINE)
    text, count = begin.subn(r"Nov 26 \1 mx smtpd-fork[539]: ", log.read_text())
    assert count > 5
    journal.write_text(text)
    for mode in ("normal", "aggressive"):
        assert found(mode, journal) == found(mode, log)


def test_aggressive_mode_finds_every_permanent_rejection_and_refusal(log: Path) -> None:
    assert found("aggressive", log) == {f"127.0.0.{n}" for n in (2, 3, 4, 5, 6)}


def test_auth_mode_finds_only_failed_attempts(log: Path) -> None:
    assert found("auth", log) == set()
    line = "INFO rejected AUTH from 2001:db8::7 [a1b2c3-4]: 535 5.7.8 Failed; helo=<x>"
    with log.open("a") as file:
        file.write(f"\n2026-11-26 17:00:00,000 {line}\n")
    assert found("auth", log) == {"2001:db8::7"}
