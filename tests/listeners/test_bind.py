"""Binding: host names with addresses that cannot be bound, and two processes with one path."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from support.daemon import LOCAL, Daemon, run
from support.peers import namespaces, peers
from support.server import serve

from smtpd_fork import Config
from smtpd_fork.errors import OperatingSystemError
from smtpd_fork.listeners import Address, open_listeners, try_to_bind
from smtpd_fork.sinks import Discard

if TYPE_CHECKING:
    from pathlib import Path

# -- unix sockets --------------------------------------------------------------------------------

STARTS = """\
import os, socket, sys
from pathlib import Path
from smtpd_fork.errors import OperatingSystemError
from smtpd_fork.listeners import Address, bind_all

for number in range(int(sys.argv[2])):
    path = Path(sys.argv[1], f"{number}.sock")
    sys.stdin.readline()
    try:
        (listener,) = bind_all([Address(path=path)], backlog=9, socket_mode=0o600)
    except OperatingSystemError as error:
        print(error, flush=True)
        sys.stdin.readline()
    else:
        print("listening", flush=True)
        sys.stdin.readline()
        client = listener.sock.accept()[0] if listener.is_ours() else None
        listener.close()
    print("done", flush=True)
"""


def test_of_two_processes_that_replace_a_stale_socket_only_one_listens(tmp_path: Path) -> None:
    rounds = 100
    command = [sys.executable, "-c", STARTS, str(tmp_path), str(rounds)]
    with ExitStack() as stack:
        pair = [
            stack.enter_context(
                subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
                )
            )
            for _ in range(2)
        ]

        def release(process: subprocess.Popen[str]) -> None:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()

        def output_of(process: subprocess.Popen[str]) -> str:
            assert process.stdout is not None
            return process.stdout.readline().strip()

        for number in range(rounds):
            path = tmp_path / f"{number}.sock"
            with socket.socket(socket.AF_UNIX) as dead:
                dead.bind(str(path))
                dead.listen()
            for process in pair:
                release(process)
            answers = sorted(output_of(process) for process in pair)
            assert answers == [
                f"cannot listen on unix:{path}: another program answers there", "listening",
            ]  # fmt: skip
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
                for process in pair:
                    release(process)
                assert [output_of(process) for process in pair] == ["done", "done"]
        assert not list(tmp_path.iterdir())


# -- names -------------------------------------------------------------------------------------


def resolved(monkeypatch: pytest.MonkeyPatch, *found: tuple[int, str]) -> None:
    """Make every host name resolve to *found*: families and addresses."""

    def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        return [(family, socket.SOCK_STREAM, 6, "", (text, port)) for family, text in found]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


FOREIGN = (socket.AF_INET, "192.0.2.1")
NO_FAMILY = (9, "00")  # AF_X25: no current system supports it


@pytest.mark.parametrize(
    ("other", "reason"),
    [(FOREIGN, "no interface of this host"), (NO_FAMILY, "does not support that address family")],
)
def test_addresses_of_a_name_that_cannot_be_bound_are_skipped_with_a_warning(
    other: tuple[int, str], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for found in ([other, (socket.AF_INET, "127.0.0.1")], [(socket.AF_INET, "127.0.0.1"), other]):
        resolved(monkeypatch, *found)
        warnings: list[str] = []
        listeners = open_listeners(Config(listen=("mail.example:0",)), warnings.append)
        assert [listener.bound[0] for listener in listeners] == ["127.0.0.1"]
        listeners[0].close()
        (warning,) = warnings
        assert warning.startswith("mail.example has an address that is not listened on, ")
        assert f"{other[1]}: " in warning
        assert reason in warning
        try_to_bind([Address(host="mail.example", port=0)], warnings.append)
        assert warnings == [warning] * 2


def test_an_error_names_all_addresses_of_a_name_if_none_can_be_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolved(monkeypatch, FOREIGN, NO_FAMILY)
    with pytest.raises(OperatingSystemError, match=r"mail.example:0, at 192.0.2.1: .*; 00: "):
        open_listeners(Config(listen=("mail.example:0",)))


def test_an_address_of_a_name_that_is_in_use_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        resolved(monkeypatch, (socket.AF_INET, "127.0.0.2"), (socket.AF_INET, "127.0.0.1"))
        port = taken.getsockname()[1]
        with pytest.raises(OperatingSystemError, match="in use by another program"):
            open_listeners(Config(listen=(f"mail.example:{port}",)))
        with socket.create_server(("127.0.0.2", port)):
            pass  # nothing stayed bound


async def test_a_reload_binds_the_addresses_of_a_name_that_can_be_bound(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve(Discard(), listen=["127.0.0.1:0"]) as server:
        resolved(monkeypatch, FOREIGN, (socket.AF_INET, "127.0.0.2"))
        await server.reload(Config.build({"listen": ["127.0.0.1:0", "mail.example:0"]}))
        assert [address[0] for address in server.addresses] == ["127.0.0.1", "127.0.0.2"]
    assert "not listened on, 192.0.2.1: " in caplog.text


NO_IPV6_LOOPBACK = """\
ip link set lo up && ip -6 addr del ::1/128 dev lo 2>/dev/null
mount --bind hosts /etc/hosts && exec "$@"
"""


def on_a_host_whose_loopback_has_no_ipv6(tmp_path: Path, *command: str) -> list[str]:
    """Return *command* in a namespace where localhost is ::1 as well, which lo does not have."""
    (tmp_path / "hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")
    peers("ip", "mount")
    enter = namespaces("--net", "--mount", "--propagation", "private")
    script = f"cd {shlex.quote(str(tmp_path))} && {NO_IPV6_LOOPBACK}"
    return [*enter, "sh", "-c", script, "sh", *command]


def test_localhost_is_bound_if_the_loopback_interface_has_no_ipv6(tmp_path: Path) -> None:
    """This is the default in a container: ::1 is in /etc/hosts, but lo does not have it."""
    command = on_a_host_whose_loopback_has_no_ipv6(tmp_path, sys.executable, "-m", "smtpd_fork")
    options = ("--handler", "discard", "-l", "localhost:2525", "--metrics", "localhost:9125")
    with Daemon(*options, cwd=tmp_path, command=command) as daemon:
        assert daemon.places == ["127.0.0.1:2525"]
        warning = "WARNING localhost has an address that is not listened on, ::1: no interface"
        assert daemon.log.count(warning) == 2  # for mail, and for the metrics
        assert daemon.stop() == 0
    checked = run("check", *options, cwd=tmp_path, command=command)
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout.count("warning: localhost has an address that is not listened on") == 2
    named = run(*LOCAL, "-l", "[::1]:2525", cwd=tmp_path, command=command)
    assert named.returncode == os.EX_OSERR
    assert "[::1]:2525: no interface of this host has that address" in named.stderr
