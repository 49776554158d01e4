"""The commands of docs/tls.md run unchanged except for the ports."""

from __future__ import annotations

import re
import shlex
import subprocess
from typing import TYPE_CHECKING

import pytest
from support.authority import Authority
from support.daemon import PATIENCE, Daemon, messages
from support.installation import ROOT
from support.page import read
from support.peers import peer

if TYPE_CHECKING:
    from pathlib import Path

PAGE = read("docs/tls.md")

COMMANDS = [
    shlex.split(line.removeprefix("$ "))
    for block in re.findall(r"^```console\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    for line in block.splitlines()
]
DAEMONS = [words[1:] for words in COMMANDS if words[0] == "smtpd-fork"]
CLIENTS = [words for words in COMMANDS if words[0] != "smtpd-fork"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    authority = Authority(tmp_path)
    for name in ("mx", "one", "two", "relay"):
        authority.issue(name, f"{name}.example.com", "127.0.0.1", "localhost")
    return tmp_path


def on_free_ports(words: list[str]) -> list[str]:
    """Replace each port by 0, and add an address on loopback if there is none."""
    freed = [re.sub(r":2[54]\d5$", ":0", word) for word in words]
    return freed if "-l" in freed else [*freed, "-l", "127.0.0.1:0"]


def test_there_are_commands() -> None:
    assert {words[0] for words in COMMANDS} == {"smtpd-fork", "openssl", "swaks"}


@pytest.mark.parametrize("words", DAEMONS, ids=" ".join)
def test_a_daemon_starts_as_the_page_says(folder: Path, words: list[str]) -> None:
    with Daemon(*on_free_ports(words), cwd=folder) as daemon:
        assert daemon.stop() == 0


@pytest.mark.parametrize("words", CLIENTS, ids=" ".join)
def test_a_client_works_as_the_page_says(folder: Path, words: list[str]) -> None:
    with Daemon(*on_free_ports(DAEMONS[0]), cwd=folder) as daemon:
        plain, tls = (place.rpartition(":")[2] for place in daemon.places)
        real = [word.replace("2525", plain).replace("2465", tls) for word in words]
        ended = subprocess.run(
            [peer(real[0]), *real[1:]],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
    if words[0] == "swaks":
        assert len(messages(folder / "Maildir")) == 1
    elif words[1] == "s_client":
        assert "Protocol version: TLSv1.3" in ended.stdout + ended.stderr


def test_the_log_lines_of_the_page_are_in_the_code() -> None:
    """Each line's fixed words; other tests check that they are logged."""
    table = PAGE.partition("| log line |")[2]
    code = " ".join(path.read_text() for path in sorted((ROOT / "smtpd_fork").rglob("*.py")))
    code = re.sub(r'"\s*\n\s*f?"', "", code)
    lines = re.findall(r"^\| `([^`]+)`", table, re.MULTILINE)
    assert len(lines) == 8
    for line in lines:
        for part in re.split(r"\b[A-Z]{1,}\b|\[ID\]|\.\.\.|[<>()]", line.replace("TLS ", "")):
            if len(part.strip(" :;")) > 1:
                assert part.strip(" :;") in code, line
