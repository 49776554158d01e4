"""Limits of clients, networks and rates over all processes."""

from __future__ import annotations

import os
import re
import signal
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from support.control import CONTROL, ask
from support.daemon import LOCAL, PATIENCE, Daemon, on_both_loops, run, until
from support.place import only_line

from smtpd_fork.errors import ExitStatus

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SERVES = r"process \d of \d serves, pid (\d+)$"


@pytest.fixture
def clients() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def greetings(daemon: Daemon, count: int, clients: ExitStack, source: str = "127.0.0.1") -> int:
    """Connect so many clients at once; return how many are greeted. The others must get 421."""
    address = ("127.0.0.1", daemon.port)
    socks = [socket.create_connection(address, PATIENCE, (source, 0)) for _ in range(count)]
    replies = [clients.enter_context(sock).recv(200)[:4] for sock in socks]
    assert set(replies) <= {b"220 ", b"421 "}
    return replies.count(b"220 ")


@on_both_loops
def test_a_limit_of_one_client_holds_over_all_processes(
    tmp_path: Path, loop: str, clients: ExitStack
) -> None:
    options = (*LOCAL, "--processes", "3", "-m", "10", "--rate", "100/h", "--loop", loop, *CONTROL)
    with Daemon(*options, cwd=tmp_path) as daemon:
        assert greetings(daemon, 60, clients) == 10
        shares = [each["sessions"] for each in ask(tmp_path, "status")["processes"]]
        assert sum(shares) == 10
        assert sum(map(bool, shares)) > 1, "several processes have some"
        pids = [int(pid) for pid in re.findall(SERVES, daemon.log, re.MULTILINE)]
        os.kill(pids[0], signal.SIGKILL)
        until(lambda: len(re.findall(SERVES, daemon.log, re.MULTILINE)) == 4, "it is replaced")
        left = ask(tmp_path, "status")["sessions"]
        assert left < 10 or len(pids) == 3
        assert greetings(daemon, 30, clients) == 10 - left, "what it held is free"
        clients.close()
        # A client that was over its limit is known as such for a quarter of a second.
        until(lambda: greetings(daemon, 1, clients) == 1, "all have gone, and this is known")
        assert greetings(daemon, 4, clients) == 4
        ident = re.search(r"refused 127.0.0.1: max_from_ip .*\[([\w-]+)\]", daemon.log)
        assert ident
        assert ask(tmp_path, "explain", id=ident[1])["limit"] == 10
        assert ask(tmp_path, "limits", set={"max_from_ip": ["7"]})["limits"]["max_from_ip"] == 7
        assert greetings(daemon, 20, clients) == 2


def test_limits_of_networks_shares_of_them_and_rates_hold_over_all(
    tmp_path: Path, clients: ExitStack
) -> None:
    limits = ("-m", "100", "--max-from-net", "12/24", "--rate", "5/h", "--rate-net", "20/h/16")
    with Daemon(*LOCAL, "--processes", "2", *limits, cwd=tmp_path) as daemon:
        assert greetings(daemon, 20, clients, "127.0.1.1") == 5, "the rate of a client"
        found = [greetings(daemon, 5, clients, f"127.0.1.{n}") for n in (2, 3, 4)]
        assert found == [5, 2, 0], "sessions of the network"
        assert greetings(daemon, 5, clients, "127.0.2.1") == 5
        assert greetings(daemon, 5, clients, "127.0.3.1") == 3, "the rate of the larger network"


def test_a_limit_that_is_local_is_refused(tmp_path: Path) -> None:
    ended = run(*LOCAL, "--processes", "2", "-m", "local:5", cwd=tmp_path)
    assert ended.returncode == ExitStatus.USAGE
    line = only_line(ended)
    assert "--max-from-ip" in line
    assert "would be multiplied by --processes (2)" in line or "by processes (2)" in line
