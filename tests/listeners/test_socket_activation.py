"""Socket activation: sockets that another process bound, and the protocol of each."""

from __future__ import annotations

import os
import re
import smtplib
import socket
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
from support.client import Client
from support.daemon import COMMAND, PATIENCE, Daemon, on_both_loops, run, until
from support.handlers import Notes
from support.peers import peer
from support.place import only_line
from support.ports import free_ports
from support.server import serve

from smtpd_fork.daemon import passed_sockets
from smtpd_fork.errors import ExitStatus, OperatingSystemError, UsageError
from smtpd_fork.listeners import inherited_listeners

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.tls import Certificates

PASS_ON = """
import fcntl, os, sys
names, pid, descriptors = sys.argv[1].split("/")
high = [fcntl.fcntl(int(word), fcntl.F_DUPFD, 100) for word in descriptors.split(",")]
os.closerange(3, 100)
for index, number in enumerate(high):
    os.dup2(number, 3 + index)
    os.close(number)
os.environ["LISTEN_FDS"] = str(len(high))
os.environ["LISTEN_PID"] = pid or str(os.getpid())
if names:
    os.environ["LISTEN_FDNAMES"] = names
os.execv(sys.argv[2], sys.argv[2:])
"""
"""The program that a service manager runs between fork and exec."""


class Passed:
    """Sockets or files that a daemon inherits; a context manager that closes them here.

    :ivar start: options for starting a daemon that inherits them
    """

    def __init__(self, *things: socket.socket | int, names: str = "", pid: str = "") -> None:
        self._things = things
        descriptors = [one if isinstance(one, int) else one.fileno() for one in things]
        words = f"{names}/{pid}/{','.join(map(str, descriptors))}"
        self.start: dict[str, Any] = {
            "command": [sys.executable, "-c", PASS_ON, words, *COMMAND],
            "pass_fds": descriptors,
        }

    def __enter__(self) -> dict[str, Any]:
        return self.start

    def __exit__(self, *_: object) -> None:
        for one in self._things:
            if isinstance(one, int):
                os.close(one)
            else:
                one.close()


def tcp() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


# -- a daemon with inherited sockets -----------------------------------------------------------


@on_both_loops
def test_a_name_selects_the_protocol_and_an_unknown_name_means_smtp(
    tmp_path: Path, certificates: Certificates, loop: str
) -> None:
    path = tmp_path / "lmtp.sock"
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(str(path))
    unix.listen()
    tls = ("--tls-cert", str(certificates.cert), "--tls-key", str(certificates.key))
    names = "smtpd-fork.socket:smtps:lmtp:smtp+proxy"
    options = ("--handler", "discard", "--proxy-trust", "127.0.0.1", "--loop", loop, *tls)
    sockets = [tcp() for _ in range(3)]
    ports = [sock.getsockname()[1] for sock in sockets]
    with Passed(*sockets[:2], unix, sockets[2], names=names) as passed:
        with Daemon(*options, cwd=tmp_path, **passed) as daemon:
            assert daemon.places == [
                f"127.0.0.1:{ports[0]}",
                f"smtps:127.0.0.1:{ports[1]}",
                f"lmtp:unix:{path}",
                f"smtp+proxy:127.0.0.1:{ports[2]}",
            ]
            daemon.deliver()
            with smtplib.SMTP_SSL(
                "127.0.0.1", ports[1], context=certificates.client, timeout=PATIENCE
            ) as client:
                assert client.noop()[0] == 250
            with smtplib.LMTP(str(path)) as local:
                assert local.docmd("LHLO", "here")[0] == 250
            with socket.create_connection(("127.0.0.1", ports[2]), timeout=PATIENCE) as proxy:
                proxy.sendall(b"PROXY TCP4 192.0.2.9 192.0.2.1 4711 25\r\n")
                assert proxy.recv(4) == b"220 "
            assert daemon.stop() == 0
    assert path.exists(), "it is the path of whoever bound it"


def test_the_backlog_of_an_inherited_socket_waits_for_the_next_daemon(tmp_path: Path) -> None:
    sock = tcp()
    with Passed(sock) as passed:
        options = ("-c", "1", "--handler", "discard")
        with Daemon(*options, cwd=tmp_path, **passed) as first:
            inside = first.smtp()
            waiting = socket.create_connection(sock.getsockname(), timeout=PATIENCE)
            first.wait_for("clients wait in the backlog")
            assert first.stop() == 0
            inside.close()
        with waiting, Daemon(*options, cwd=tmp_path, **passed):
            assert waiting.recv(4) == b"220 "


def test_an_abstract_socket_is_shown_with_an_at_sign(tmp_path: Path) -> None:
    name = f"smtpd-fork-test-{os.getpid()}"
    unix = socket.socket(socket.AF_UNIX)
    unix.bind("\0" + name)
    unix.listen()
    with Passed(unix) as passed:
        with Daemon("--handler", "discard", cwd=tmp_path, **passed) as daemon:
            assert daemon.places == [f"unix:@{name}"]
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(PATIENCE)
                client.connect("\0" + name)
                assert client.recv(4) == b"220 "


def test_child_processes_of_handlers_inherit_neither_variables_nor_sockets(tmp_path: Path) -> None:
    (tmp_path / "look.py").write_text(LOOK)
    with Passed(tcp(), names="smtp") as passed:
        with Daemon("--handler", "look:Look", cwd=tmp_path, **passed) as daemon:
            with daemon.smtp() as client:
                client.ehlo()
                client.mail("a@example.com")
                client.rcpt("b@example.com")
                assert client.data("hello") == (250, b"[] 0")


LOOK = """
import os, subprocess


class Look:
    async def handle_DATA(self, server, session, envelope):
        found = [name for name in os.environ if name.startswith(("LISTEN_", "NOTIFY_", "WATCH"))]
        command = ["sh", "-c", "ls -l /proc/self/fd"]
        seen = subprocess.run(command, close_fds=False, capture_output=True, text=True).stdout
        return f"250 {found} {seen.count('socket:')}"
"""


# -- systemd-socket-activate ------------------------------------------------------------------


@on_both_loops
def test_systemd_socket_activate_starts_it_with_the_first_client(tmp_path: Path, loop: str) -> None:
    plain, lmtp = free_ports(2)
    activate = [
        *(peer("systemd-socket-activate"), "--fdname", "smtp:lmtp"),
        *("-l", f"127.0.0.1:{plain}", "-l", f"127.0.0.1:{lmtp}"),
        *(f"-E{name}={value}" for name, value in os.environ.items() if name == "PATH"),
        *COMMAND,
    ]
    heard: list[bytes] = []
    client = threading.Thread(
        target=until, args=(lambda: try_to_hear(plain, heard), "systemd listens")
    )
    client.start()
    with Daemon("--handler", "discard", "--loop", loop, cwd=tmp_path, command=activate) as daemon:
        client.join(PATIENCE)
        assert heard == [b"220 "]
        assert daemon.places == [f"127.0.0.1:{plain}", f"lmtp:127.0.0.1:{lmtp}"]
        daemon.deliver()
        with smtplib.LMTP("127.0.0.1", lmtp) as local:
            assert local.docmd("LHLO", "here")[0] == 250
        assert daemon.stop() == 0


def try_to_hear(port: int, heard: list[bytes]) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as sock:
            heard.append(sock.recv(4))
    except ConnectionRefusedError:
        return False
    return True


# -- errors ------------------------------------------------------------------------------------


def udp() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    return sock


def silent() -> socket.socket:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    return sock


def connection() -> socket.socket:
    ours, other = socket.socketpair()
    other.close()
    return ours


def file() -> int:
    return os.open(os.devnull, os.O_RDONLY)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (udp, "descriptor 3: that kind of socket cannot listen"),
        (silent, "descriptor 3: it does not listen"),
        (connection, "descriptor 3: it does not listen"),
        (file, "descriptor 3: it is not a socket"),
    ],
)
def test_a_descriptor_that_is_not_a_listening_socket_is_an_error(
    tmp_path: Path, make: Callable[[], socket.socket | int], says: str
) -> None:
    with Passed(make()) as passed:
        ended = run("--handler", "discard", cwd=tmp_path, **passed)
    assert ended.returncode == ExitStatus.OS_ERROR
    assert says in only_line(ended)


@pytest.mark.parametrize(
    ("option", "says"),
    [
        (("-l", "127.0.0.1:0"), "--listen-address '127.0.0.1:0': the sockets are inherited"),
        (("-p", "2526"), "--port 2526: the sockets are inherited"),
    ],
)
def test_a_listen_address_in_addition_is_an_error(
    tmp_path: Path, option: tuple[str, ...], says: str
) -> None:
    with Passed(tcp()) as passed:
        ended = run("--handler", "discard", *option, cwd=tmp_path, **passed)
    assert ended.returncode == ExitStatus.USAGE
    assert says in only_line(ended)


def test_implicit_tls_requires_a_certificate(tmp_path: Path) -> None:
    with Passed(tcp(), names="smtps") as passed:
        ended = run("--handler", "discard", cwd=tmp_path, **passed)
    assert ended.returncode == ExitStatus.CONFIG
    assert re.search(r"smtps:127\.0\.0\.1:\d+: there is no certificate", only_line(ended))


@pytest.mark.parametrize(
    ("count", "pid", "names", "says"),
    [
        ("many", "{own}", None, "LISTEN_FDS 'many': expected a whole number"),
        ("-1", "{own}", None, "LISTEN_FDS '-1'"),
        ("+1", "{own}", None, "LISTEN_FDS"),
        ("1_0", "{own}", None, "LISTEN_FDS"),
        ("\u0661", "{own}", None, "LISTEN_FDS"),
        ("9" * 5000, "{own}", None, "LISTEN_FDS"),
        ("1025", "{own}", None, "LISTEN_FDS '1025'"),
        ("1", None, None, "LISTEN_PID is missing"),
        ("1", "me", None, "LISTEN_PID 'me': expected"),
        ("1", "1", None, "LISTEN_PID '1': the sockets are not for this process"),
        ("2", "{own}", "smtp", "LISTEN_FDNAMES 'smtp': 1 names for 2 descriptors"),
        ("1", "{own}", "a:b", "LISTEN_FDNAMES"),
        ("1000", "{own}", None, "is not open"),
    ],
)
def test_invalid_variables_are_an_error_and_are_removed(
    count: str, pid: str | None, names: str | None, says: str
) -> None:
    given = {"LISTEN_FDS": count, "LISTEN_PID": pid, "LISTEN_FDNAMES": names}
    environment = {k: v.format(own=os.getpid()) for k, v in given.items() if v is not None}
    with pytest.raises(UsageError, match=re.escape(says)) as caught:
        passed_sockets(environment)
    assert "\n" not in str(caught.value)
    assert environment == {}


@pytest.mark.parametrize(
    "environment", [{}, {"LISTEN_PID": "1"}, {"LISTEN_FDS": "0", "LISTEN_FDNAMES": ""}]
)
def test_no_passed_sockets_are_not_an_error(environment: dict[str, str]) -> None:
    assert passed_sockets(environment) == []
    assert environment == {}


# -- functions ---------------------------------------------------------------------------------


@pytest.fixture
def sockets() -> Iterator[list[socket.socket]]:
    with tcp() as one, tcp() as two:
        yield [one, two]


async def test_listeners_of_inherited_sockets_serve(sockets: list[socket.socket]) -> None:
    handler = Notes()
    passed = [
        (os.dup(sock.fileno()), name) for sock, name in zip(sockets, ["smtp", "x"], strict=True)
    ]
    listeners = inherited_listeners(passed, backlog=5)
    async with serve(handler, listeners=listeners) as server:
        for address in server.addresses:
            async with await Client.to(address) as client:
                assert (await client.greet()).code == 250
                assert (await client.deliver()).code == 250
    assert len(handler.sessions) == 2


def test_if_a_socket_cannot_listen_all_are_closed(sockets: list[socket.socket]) -> None:
    good, bad = os.dup(sockets[0].fileno()), os.open(os.devnull, os.O_RDONLY)
    with pytest.raises(OperatingSystemError, match="not a socket"):
        inherited_listeners([(good, "smtp"), (bad, "smtp")], backlog=5)
    os.close(bad)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(good)
