"""docs/debug-a-refused-client.md: ten refusals in the logs of Postfix and smtpd-fork."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from support.installation import ROOT
from support.page import read
from support.peers import namespaces, peers
from support.transcript import loosened

from peers.refused_clients import CLIENTS

pytestmark = [pytest.mark.peers, pytest.mark.timeout(120)]

PAGE = "docs/debug-a-refused-client.md"

_ENTER = """
ip link set lo up && hostname mx.example.com && mount --bind "$1/resolv.conf" /etc/resolv.conf &&
exec "$2" "$3" "$1"
"""

_PREFIX = re.compile(r"^[A-Z][a-z]{2} [ \d]\d [\d:]+ mx postfix/smtpd\[\d+\]: |^[\d-]+ [\d:,]+ ")
"""The time and the name of Postfix's process, which the page omits."""


def logged() -> dict[str, tuple[str, str]]:
    """Return the lines that Postfix and smtpd-fork log for each client."""
    peers("ip", "hostname", "mount", "postfix")
    options = ("--net", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
    with tempfile.TemporaryDirectory(prefix="refused") as folder:  # Postfix's user has to enter it.
        (Path(folder) / "resolv.conf").write_text("nameserver 127.0.0.1\n")
        program = Path(__file__).with_name("refused_clients.py")
        ended = subprocess.run(
            [*namespaces(*options), "sh", "-c", _ENTER, "sh", folder, sys.executable, str(program)],
            capture_output=True,
            text=True,
            check=False,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": str(ROOT / "tests")},
        )
    assert ended.returncode == 0, ended.stderr
    lines = json.loads(ended.stdout)
    return {
        name: (_PREFIX.sub("", theirs), _PREFIX.sub("", ours))
        for name, (theirs, ours) in lines.items()
    }


def row(name: str, theirs: str, ours: str) -> str:
    return f"| {name} | `{theirs}` | `{ours}` |"


def comparable(text: str) -> str:
    """Return a row without texts that differ in each run: ids, ports, a line of Python's source."""
    return re.sub(r"_ssl\.c:(\d+|N)", "_ssl.c:N", loosened(text))


def test_the_page_has_the_lines_that_both_log() -> None:
    found = logged()
    assert list(found) == list(CLIENTS)
    rows = [row(name, *lines) for name, lines in found.items()]
    shown = re.findall(r"^\| .* \| `.*` \| `.*` \|$", read(PAGE), re.MULTILINE)
    wanted = "\n".join(rows)
    assert list(map(comparable, shown)) == list(map(comparable, rows)), (
        f"the page must have\n{wanted}"
    )
