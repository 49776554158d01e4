"""Options of listening in a real process: ports, addresses, unix sockets, the backlog."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from support.daemon import LOCAL, Daemon, run
from support.dialogue import connect, first_line
from support.peers import needs_ipv6, peer, proc
from support.ports import free_ports

if TYPE_CHECKING:
    from pathlib import Path


def port_of(place: str) -> int:
    return int(place.rpartition(":")[2])


def greets(address: Any) -> bool:
    return first_line(address).startswith("220 ")


def test_without_an_address_it_listens_on_ipv4_and_ipv6(tmp_path: Path) -> None:
    needs_ipv6()
    with Daemon("-p", "0", "--handler", "discard", cwd=tmp_path) as daemon:
        assert greets(("127.0.0.1", daemon.port))
        assert greets(("::1", daemon.port))
        assert daemon.stop() == 0


def test_several_ports_are_all_bound(tmp_path: Path) -> None:
    one, other = free_ports(2)
    with Daemon(
        "-p",
        str(one),
        "--port",
        str(other),
        "-l",
        "127.0.0.1",
        "--handler",
        "discard",
        cwd=tmp_path,
    ) as daemon:
        assert daemon.places == [f"127.0.0.1:{one}", f"127.0.0.1:{other}"]
        assert greets(("127.0.0.1", one))
        assert greets(("127.0.0.1", other))


def test_an_address_without_a_port_is_bound_on_every_port(tmp_path: Path) -> None:
    one, other = free_ports(2)
    ports = ("-p", str(one), "-p", str(other))
    listen = ("-l", "127.0.0.1", "--listen-address", "127.0.0.2", "-l", "127.0.0.3:0")
    with Daemon(*ports, *listen, "--handler", "discard", cwd=tmp_path) as daemon:
        *spread, alone = daemon.places
        assert spread == [
            f"127.0.0.1:{one}",
            f"127.0.0.1:{other}",
            f"127.0.0.2:{one}",
            f"127.0.0.2:{other}",
        ]
        assert alone.startswith("127.0.0.3:")
        assert port_of(alone) not in {0, one, other}
        assert all(greets((place.partition(":")[0], port_of(place))) for place in daemon.places)


def test_port_0_twice_selects_two_free_ports(tmp_path: Path) -> None:
    with Daemon(
        "-p", "0", "-p", "0", "-l", "127.0.0.1", "--handler", "discard", cwd=tmp_path
    ) as daemon:
        assert len({port_of(place) for place in daemon.places}) == 2


def test_an_ipv6_address_is_written_in_brackets(tmp_path: Path) -> None:
    with Daemon("-l", "[::1]:0", "--handler", "discard", cwd=tmp_path) as daemon:
        assert daemon.places[0].startswith("[::1]:")
        assert greets(("::1", daemon.port))


def test_both_wildcards_on_one_port_are_two_sockets(tmp_path: Path) -> None:
    (port,) = free_ports(1, "0.0.0.0")
    with Daemon(
        "-p", str(port), "-l", "0.0.0.0", "-l", "::", "--handler", "discard", cwd=tmp_path
    ) as daemon:
        assert daemon.places == [f"0.0.0.0:{port}", f"[::]:{port}"]
        assert greets(("127.0.0.1", port))
        assert greets(("::1", port))


def test_a_unix_socket_is_served_and_removed_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "smtp.sock"
    with Daemon("-l", "unix:smtp.sock", "--handler", "discard", cwd=tmp_path) as daemon:
        assert daemon.places == [f"unix:{path}"]
        assert greets(str(path))
        assert daemon.stop() == 0
    assert not path.exists()


@pytest.mark.parametrize(
    ("options", "mode"),
    [((), 0o660), (("--socket-mode", "0600"), 0o600), (("--socket-mode", "666"), 0o666)],
    ids=["default", "0600", "666"],
)
def test_socket_mode_is_the_mode_of_the_path(
    tmp_path: Path, options: tuple[str, ...], mode: int
) -> None:
    path = tmp_path / "smtp.sock"
    with Daemon("-l", f"unix:{path}", *options, "--handler", "discard", cwd=tmp_path):
        assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_unix_socket_of_a_dead_process_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "smtp.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with Daemon("-l", f"unix:{path}", "--handler", "discard", cwd=tmp_path):
        assert greets(str(path))


def test_a_unix_socket_of_a_running_process_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "smtp.sock"
    with socket.socket(socket.AF_UNIX) as alive:
        alive.bind(str(path))
        alive.listen()
        ended = run("-l", f"unix:{path}", "--handler", "discard", cwd=tmp_path)
        assert ended.returncode == os.EX_OSERR
        assert f"unix:{path}: another program answers there" in ended.stderr
        connect(str(path)).close()


@pytest.mark.parametrize(("backlog", "queue"), [("0", 0), ("-5", 0), ("7", 7), ("999999999", None)])
def test_it_serves_with_any_backlog(tmp_path: Path, backlog: str, queue: int | None) -> None:
    with Daemon(*LOCAL, "--backlog", backlog, cwd=tmp_path) as daemon:
        with ExitStack() as stack:
            for _ in range(3):  # more concurrent clients than a backlog of 0 allows
                stack.enter_context(daemon.smtp())
        shown = subprocess.run(
            [peer("ss"), "-Hltn", f"sport = :{daemon.port}"],
            capture_output=True,
            text=True,
            check=True,
        )
        most = int(proc("sys/net/core/somaxconn").read_text())
        assert int(shown.stdout.split()[2]) == (most if queue is None else queue)
