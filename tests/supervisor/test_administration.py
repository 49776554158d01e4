"""--limit-connections and the control socket with several processes."""

from __future__ import annotations

import re
import socket
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import pytest
from support.control import CONTROL, ask, command, says
from support.daemon import (
    LOCAL,
    PATIENCE,
    Daemon,
    until,
)
from support.supervised import TWO

from smtpd_fork.errors import ExitStatus

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.peers
def test_connection_slots_are_divided_exactly_among_processes(tmp_path: Path) -> None:
    options = (*LOCAL, "--processes", "4", "-m", "0", "-c", "102", *CONTROL)
    with Daemon(*options, cwd=tmp_path) as daemon:
        address = ("127.0.0.1", daemon.port)
        clients = [socket.create_connection(address, timeout=PATIENCE) for _ in range(1000)]
        until(lambda: ask(tmp_path, "status")["sessions"] == 102, "all are in use")
        limits = [each["limit"] for each in ask(tmp_path, "status")["processes"]]
        assert limits == [26, 26, 25, 25]
        for _ in range(3):
            assert ask(tmp_path, "status")["sessions"] == 102
            time.sleep(0.05)
        greeted = 0
        for client in clients:
            client.setblocking(False)
            with suppress(BlockingIOError):
                greeted += client.recv(4) == b"220 "
        assert greeted == 102
        for client in clients:
            client.close()
        until(lambda: ask(tmp_path, "status")["sessions"] == 0, "all clients have disconnected")


@pytest.mark.parametrize("how", ["refuse", "defer:1"])
@pytest.mark.peers
def test_no_client_is_refused_while_a_process_has_a_free_slot(tmp_path: Path, how: str) -> None:
    options = (*TWO, "-c", "10", "-m", "0", "--when-full", how, *CONTROL)
    with Daemon(*options, cwd=tmp_path) as daemon, ExitStack() as clients:
        address = ("127.0.0.1", daemon.port)

        def connect(count: int) -> list[bytes]:
            socks = [socket.create_connection(address, timeout=PATIENCE) for _ in range(count)]
            return [clients.enter_context(sock).recv(4) for sock in socks]

        for _ in range(3):
            assert connect(10) == [b"220 "] * 10, "all slots are used before one is refused"
            assert connect(3) == [b"421 "] * 3
            clients.close()
            until(lambda: ask(tmp_path, "status")["sessions"] == 0, "all clients have disconnected")


def test_the_control_socket_answers_for_all_processes(tmp_path: Path) -> None:
    config = tmp_path / "conf.toml"
    config.write_text('hostname = "one.example"\n')
    options = (*TWO, "-c", "11", "--config", str(config), *CONTROL)
    with Daemon(*options, cwd=tmp_path) as daemon:
        clients = [daemon.smtp(source=f"127.0.1.{n}") for n in range(1, 12)]
        status = ask(tmp_path, "status")
        assert (status["sessions"], status["limit"], status["clients"]) == (11, 11, 11)
        assert [each["limit"] for each in status["processes"]] == [6, 5]
        assert "process" in says(tmp_path, "status")

        page = ask(tmp_path, "sessions", limit=4)
        found = [each["id"] for each in page["sessions"]]
        while page["next"]:
            page = ask(tmp_path, "sessions", limit=4, after=page["next"])
            found += [each["id"] for each in page["sessions"]]
        assert len(set(found)) == len(found) == 11
        assert "since" not in ask(tmp_path, "sessions")["sessions"][0]

        assert ask(tmp_path, "kick", id=found[0])["kicked"] == 1
        until(lambda: ask(tmp_path, "status")["sessions"] == 10, "it is gone")
        assert ask(tmp_path, "kick", id="nobody")["fault"] == "unknown"
        assert ask(tmp_path, "kick", client="127.0.1.0/24")["kicked"] == 10
        until(lambda: ask(tmp_path, "status")["sessions"] == 0, "they have ended")

        assert ask(tmp_path, "deny", network="127.0.2.0/24")["ok"]
        assert ask(tmp_path, "pause")["state"] == "paused"
        assert ask(tmp_path, "resume")["state"] == "serving"
        refusals = set()
        for _ in range(20):
            with socket.create_connection(
                ("127.0.0.1", daemon.port), PATIENCE, ("127.0.2.1", 0)
            ) as sock:
                assert sock.recv(100).startswith(b"554 5.7.1 one.example")
            refusals |= set(re.findall(r"refused .*\[([\w-]+)\]$", daemon.log, re.MULTILINE))
        status = ask(tmp_path, "status")
        assert (status["refused"], status["denied"]) == (20, 1)
        assert ask(tmp_path, "undeny", network="127.0.2.0/24")["ok"]
        for ident in refusals:
            assert ask(tmp_path, "explain", id=ident)["rule"] == "deny"
        assert ask(tmp_path, "explain", id="none-1")["fault"] == "unknown"

        changed = ask(tmp_path, "limits", set={"limit_connections": ["7"]})
        assert changed["limits"]["limit_connections"] == 7
        assert [each["limit"] for each in ask(tmp_path, "status")["processes"]] == [4, 3]
        refused = ask(tmp_path, "limits", set={"limit_connections": ["1"]})
        assert "each of 2 processes needs a connection" in refused["text"]

        config.write_text('hostname = "two.example"\n')
        assert "hostname one.example -> two.example" in says(tmp_path, "reload")
        assert [each["limit"] for each in ask(tmp_path, "status")["processes"]] == [6, 5]
        for _ in range(4):
            with daemon.smtp() as client:
                assert b"two.example" in client.ehlo()[1]
        for wrong in ('[gate]\nreserve = "x"\n', '[tls]\ncert = "nowhere.pem"\n'):
            config.write_text(f'hostname = "two.example"\n{wrong}')
            failed = command(tmp_path, "reload")
            assert failed.returncode == ExitStatus.CONFIG
            assert "conf.toml, line 3" in failed.stderr
        for client in clients:
            client.close()
