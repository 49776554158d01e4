"""Limits per client, per network and rates over all processes."""

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
from support.proxy import V1
from support.redis_server import RedisServer
from support.supervised import PATIENT, attempt_auth, greetings, limit_failures

from smtpd_fork.errors import ExitStatus

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from smtplib import SMTP


@pytest.fixture
def clients() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def status(folder: Path) -> list[dict[str, int]]:
    """Return the processes as the command status lists them."""
    found: list[dict[str, int]] = ask(folder, "status")["processes"]
    return found


def refusals(daemon: Daemon) -> list[str]:
    """Return the ids of the refusals in the log."""
    return re.findall(r"refused 127.0.0.1: max_from_ip .*\[([\w-]+)\]", daemon.log)


@on_both_loops
def test_a_limit_per_client_applies_to_all_processes_together(
    tmp_path: Path, loop: str, clients: ExitStack
) -> None:
    options = (
        *LOCAL,
        *PATIENT,
        "--processes",
        "3",
        "-m",
        "10",
        "--rate",
        "100/h",
        "--loop",
        loop,
        *CONTROL,
    )
    with Daemon(*options, cwd=tmp_path) as daemon:
        assert greetings(daemon, 60, clients) == 10
        until(lambda: refusals(daemon), "the log is written")
        for ident in refusals(daemon):
            assert ask(tmp_path, "explain", id=ident)["limit"] == 10
        shown = ask(tmp_path, "fleet", client="127.0.0.1")
        assert len(shown["nodes"]) == 3
        assert [(each["rule"], each["sessions"]) for each in shown["limits"]] == [
            *(("max_from_ip", 10), ("rate", 10)),
        ]
        holds = {each["sessions"]: each["pid"] for each in status(tmp_path)}
        most = max(holds)
        os.kill(holds[most], signal.SIGKILL)
        until(lambda: holds[most] not in {each["pid"] for each in status(tmp_path)}, "it has ended")
        until(lambda: len(status(tmp_path)) == 3, "it is replaced")
        assert sum(each["sessions"] for each in status(tmp_path)) == 10 - most
        assert greetings(daemon, 30, clients) == most, "its slots are free"
        assert ask(tmp_path, "limits", set={"max_from_ip": ["7"]})["limits"]["max_from_ip"] == 7
        assert greetings(daemon, 20, clients, "127.0.0.2") == 7


def test_limits_and_shares_of_networks_and_rates_apply_to_all_processes_together(
    tmp_path: Path, clients: ExitStack
) -> None:
    limits = ("-m", "100", "--max-from-net", "12/24", "--rate", "5/h", "--rate-net", "20/h/16")
    with Daemon(*LOCAL, *PATIENT, "--processes", "2", *limits, cwd=tmp_path) as daemon:
        assert greetings(daemon, 20, clients, "127.0.1.1") == 5, "the rate of a client"
        found = [greetings(daemon, 5, clients, f"127.0.1.{n}") for n in (2, 3, 4)]
        assert found == [5, 2, 0], "sessions of the network"
        assert greetings(daemon, 5, clients, "127.0.2.1") == 5
        assert greetings(daemon, 5, clients, "127.0.3.1") == 3, "the rate of the larger network"


def test_with_a_fleet_each_process_is_a_node_of_it(tmp_path: Path, clients: ExitStack) -> None:
    with RedisServer() as redis:
        options = (*LOCAL, "--processes", "2", "-m", "10", "--fleet", f"unix:{redis.path}")
        with Daemon(*options, *CONTROL, cwd=tmp_path) as daemon:
            until(lambda: (ask(tmp_path, "status")["fleet"] or {}).get("nodes") == 2, "both joined")
            assert greetings(daemon, 40, clients) == 10
            assert len(ask(tmp_path, "fleet")["nodes"]) == 2


@on_both_loops
def test_an_early_talker_found_by_one_process_is_denied_by_all(tmp_path: Path, loop: str) -> None:
    options = (
        *("-l", "smtp+proxy:127.0.0.1:0", "--proxy-trust", "127.0.0.1", "--handler", "discard"),
        *("--processes", "3", "--greet-pause", "300ms", "--greet-pause-deny", "1h"),
    )
    with Daemon(*options, "--loop", loop, *CONTROL, cwd=tmp_path) as daemon:

        def reply(data: bytes) -> bytes:
            with socket.create_connection(("127.0.0.1", daemon.port), PATIENCE) as client:
                client.sendall(data)
                return client.recv(200)

        assert reply(V1 + b"EHLO x\r\n").startswith(b"554 5.5.1 ")
        daemon.wait_for("refused 192.0.2.1: greet_pause, sent EHLO before the greeting, denied for")
        refused = b"554 5.7.1 "
        until(lambda: all(reply(V1).startswith(refused) for _ in range(30)), "all deny it")
        until(lambda: ask(tmp_path, "denials")["denials"], "the supervisor lists it")
        (denial,) = ask(tmp_path, "denials")["denials"]
        assert (denial["network"], denial["by"]) == ("192.0.2.1", "greet_pause")
        ids = re.findall(r"refused 192.0.2.1: greet_pause.* \[([\w-]+)\]", daemon.log)
        assert ask(tmp_path, "explain", id=ids[0])["rule"] == "greet_pause"
        until(lambda: not ask(tmp_path, "status")["sessions"], "all slots are free")


def test_a_local_limit_is_refused(tmp_path: Path) -> None:
    ended = run(*LOCAL, *PATIENT, "--processes", "2", "-m", "local:5", cwd=tmp_path)
    assert ended.returncode == ExitStatus.USAGE
    line = only_line(ended)
    assert "--max-from-ip 'local:5': " in line
    assert "would be multiplied by --processes (2)" in line or "by processes (2)" in line


TRAP = """
class Trap:
    async def handle_MAIL(self, server, session, envelope, address, options):
        server.deny("192.0.2.0/24", "Trapped", seconds=3600)
        return "550 5.7.1 No"
"""


def test_a_denial_by_a_handler_applies_to_all_processes(tmp_path: Path) -> None:
    (tmp_path / "trap.py").write_text(TRAP)
    options = ("--processes", "2", "-m", "0", *CONTROL, "--handler", "trap:Trap")
    with Daemon(*LOCAL, *options, cwd=tmp_path) as daemon:
        with daemon.smtp() as client:
            client.ehlo()
            assert client.mail("a@example.org")[0] == 550
        until(lambda: ask(tmp_path, "denials")["denials"], "the first process has the denial")
        until(lambda: ask(tmp_path, "denials")["denials"], "the supervisor lists it")
        (denial,) = ask(tmp_path, "denials")["denials"]
        assert (denial["network"], denial["by"]) == ("192.0.2.0/24", "a handler")
        assert ask(tmp_path, "status")["denied"] == 1
        assert ask(tmp_path, "undeny", network="192.0.2.0/24")["ok"]
        until(lambda: ask(tmp_path, "denials")["denials"] == [], "all processes have the denial")
        assert ask(tmp_path, "undeny", network="192.0.2.0/24")["fault"] == "unknown"


@pytest.mark.parametrize(
    ("limit", "code"),
    [("max-failures = 4", 421), ("max-failures = 0\nmax-user-failures = 4", 454)],
)
def test_failed_attempts_to_authenticate_count_over_all_processes(
    tmp_path: Path, clients: ExitStack, limit: str, code: int
) -> None:
    options = (*limit_failures(tmp_path, limit), *PATIENT, "--processes", "2")
    with Daemon(*options, *CONTROL, cwd=tmp_path) as daemon:
        sessions: list[SMTP] = []
        while len(sessions) < 40 and min(each["sessions"] for each in status(tmp_path)) < 6:
            sessions.append(daemon.smtp())
            clients.callback(sessions[-1].close)
        assert min(each["sessions"] for each in status(tmp_path)) >= 6
        codes = [attempt_auth(each, f"guess {number}") for number, each in enumerate(sessions)]
        assert codes[:4] == [535] * 4
        assert set(codes[4:]) <= {535, code}
        assert codes.count(535) <= 5, "one more at the process that does not know the others yet"
