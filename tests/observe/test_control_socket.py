"""The control socket itself: who may speak there, and how little a client can do to it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
import subprocess
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from support.client import Client
from support.control import CONTROL, SOCKET, ask, command, connect, line, says
from support.daemon import COMMAND, LOCAL, PATIENCE, Daemon, Detached, end, run, until
from support.peers import needs_root, peer
from support.place import only_line
from support.server import serve
from support.server import until as until_here

from smtpd_fork import Gate, Ticket
from smtpd_fork.observe.control import MAX_REPLY, MAX_REQUEST, PAGE, Control, open_control
from smtpd_fork.observe.control.control import MAX_CLIENTS
from smtpd_fork.sinks import Discard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

NOBODY = 65534
STATUS = b'{"v":1,"command":"status"}\n'


@pytest.fixture(params=["uvloop", "asyncio"])
def daemon(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Daemon]:
    with Daemon(*LOCAL, *CONTROL, "--loop", request.param, cwd=tmp_path) as running:
        yield running
        assert running.stop() == 0
        assert "Traceback" not in running.log
        assert not (tmp_path / SOCKET).exists()


# -- the path ----------------------------------------------------------------------------------


def test_the_socket_is_its_owners_alone_whatever_the_umask(tmp_path: Path) -> None:
    open_umask = ["sh", "-c", 'umask 0; exec "$0" "$@"', *COMMAND]
    with Daemon(*LOCAL, *CONTROL, cwd=tmp_path, command=open_umask):
        assert stat.S_IMODE((tmp_path / SOCKET).stat().st_mode) == 0o600


def test_it_is_never_more_than_its_owners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen from inside of listen(2): before that nobody can connect."""
    modes = []
    listen = socket.socket.listen

    class Watched(socket.socket):
        def listen(self, backlog: int = 1, /) -> None:
            modes.append(stat.S_IMODE((tmp_path / SOCKET).stat().st_mode))
            listen(self, backlog)

    monkeypatch.setattr(socket, "socket", Watched)
    open_control(str(tmp_path / SOCKET)).close()
    assert modes == [0o600]


def test_the_path_of_a_dead_daemon_is_taken_over(tmp_path: Path) -> None:
    with Daemon(*LOCAL, *CONTROL, cwd=tmp_path) as dead:
        dead.stop(signal.SIGKILL)
    assert (tmp_path / SOCKET).exists()
    ended = command(tmp_path, "status")
    assert ended.returncode == os.EX_UNAVAILABLE
    with Daemon(*LOCAL, *CONTROL, cwd=tmp_path) as daemon:
        assert ask(tmp_path, "status")["pid"] == daemon.process.pid


def test_the_path_of_a_living_daemon_is_not(daemon: Daemon, tmp_path: Path) -> None:
    ended = run(*LOCAL, *CONTROL, cwd=tmp_path)
    assert ended.returncode == os.EX_OSERR
    assert "another program answers there (from --control)" in only_line(ended)
    assert ask(tmp_path, "status")["pid"] == daemon.process.pid


@pytest.mark.parametrize(
    ("path", "status"),
    [("file", os.EX_CANTCREAT), ("none/x", os.EX_CANTCREAT), ("x" * 200, os.EX_USAGE)],
)
def test_a_path_that_cannot_be_had_is_named(tmp_path: Path, path: str, status: int) -> None:
    (tmp_path / "file").write_text("somebody's")
    ended = run(*LOCAL, "--control", path, cwd=tmp_path)
    assert ended.returncode == status
    assert path in only_line(ended)
    assert "--control" in ended.stderr
    assert (tmp_path / "file").read_text() == "somebody's"


def test_a_start_that_fails_leaves_no_socket(tmp_path: Path) -> None:
    ended = run(*LOCAL, *CONTROL, "--handler", "nosuch", cwd=tmp_path)
    assert only_line(ended)
    assert not (tmp_path / SOCKET).exists()


def test_a_detached_daemon_has_it_as_well_and_removes_it(tmp_path: Path) -> None:
    with Detached(*LOCAL, *CONTROL, cwd=tmp_path) as daemon:
        assert ask(tmp_path, "status")["pid"] == daemon.pid
        daemon.stop()
    assert not (tmp_path / SOCKET).exists()


# -- who may -----------------------------------------------------------------------------------


def test_it_is_the_users_own_and_the_janitor_removes_it(
    public: Path, command_for_nobody: list[str]
) -> None:
    (public / "run").mkdir()
    path = public / "run" / SOCKET
    options = (*LOCAL, "-u", "nobody", "--control", str(path))
    for number in (signal.SIGTERM, signal.SIGKILL):
        with Daemon(*options, cwd=public, command=command_for_nobody) as daemon:
            status = path.stat()
            assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (NOBODY, 0o600)
            words = ("status", "--control", str(path))
            for user in ("nobody", None):  # its own user, and root
                ended = run(*words, cwd=public, command=command_for_nobody, user=user)
                assert (ended.returncode, ended.stderr) == (0, "")
            daemon.stop(number)
        until(lambda: not path.exists(), "the janitor is done")


@pytest.mark.parametrize("open_mode", [False, True], ids=["0600", "0666"])
def test_another_user_may_not_whatever_the_mode(
    public: Path, command_for_nobody: list[str], *, open_mode: bool
) -> None:
    needs_root()
    setpriv = [peer("setpriv"), "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups"]
    with Daemon(*LOCAL, *CONTROL, cwd=public, command=command_for_nobody) as daemon:
        if open_mode:
            (public / SOCKET).chmod(0o666)
        for words in (("status",), ("kick", "x"), ("drain",)):
            ended = run(*words, *CONTROL, cwd=public, command=[*setpriv, *command_for_nobody])
            assert ended.returncode == os.EX_NOPERM
            assert "only root and" in only_line(ended)
        if open_mode:
            daemon.wait_for(f"control: uid {NOBODY}, pid \\d+ was turned away: permission")
        daemon.deliver()
        assert json.loads(says(public, "status", "--json"))["state"] == "serving"


# -- floods and stalls -------------------------------------------------------------------------


def test_so_many_may_speak_at_once_and_the_next_is_told(daemon: Daemon, tmp_path: Path) -> None:
    with ExitStack() as stack:
        for _ in range(MAX_CLIENTS):
            sock = stack.enter_context(connect(tmp_path))
            sock.sendall(STATUS)
            assert line(sock)["ok"]
        ended = command(tmp_path, "status")
        assert ended.returncode == os.EX_UNAVAILABLE
        assert "8 clients already" in only_line(ended)
        daemon.deliver()
    until(lambda: command(tmp_path, "status").returncode == 0, "there is room again")


@pytest.mark.parametrize("kind", ["garbage", "requests", "connections", "stall", "deaf"])
def test_mail_flows_whatever_control_clients_do(daemon: Daemon, tmp_path: Path, kind: str) -> None:
    done = threading.Event()

    def misbehave() -> None:
        while not done.is_set():
            with ExitStack() as stack:
                try:
                    clients = [stack.enter_context(connect(tmp_path)) for _ in range(MAX_CLIENTS)]
                    for sock in clients:
                        ATTACKS[kind](sock)
                except OSError:
                    continue  # turned away, cut, or its patience is over: again
                done.wait(0.05)

    attackers = [threading.Thread(target=misbehave) for _ in range(3)]
    for thread in attackers:
        thread.start()
    try:
        for _ in range(20):
            daemon.deliver()
    finally:
        done.set()
        for thread in attackers:
            thread.join(PATIENCE)
    until(lambda: command(tmp_path, "status").returncode == 0, "there is room again")
    until(lambda: ask(tmp_path, "status").get("sessions") == 0, "the counts return to zero")
    assert ask(tmp_path, "status")["admitted"] == 20


def _pour(sock: socket.socket, what: bytes) -> None:
    sock.settimeout(0.05)
    sock.sendall(what)


ATTACKS: dict[str, Callable[[socket.socket], None]] = {
    "garbage": lambda sock: _pour(sock, os.urandom(1 << 16).replace(b"{", b"\n")),
    "requests": lambda sock: _pour(sock, STATUS * 500),
    "connections": lambda sock: sock.close(),
    "stall": lambda sock: _pour(sock, STATUS[:10]),
    "deaf": lambda sock: _pour(sock, b'{"v":1,"command":"sessions"}\n' * 2000),
}


def test_a_client_that_stalls_is_closed_when_its_time_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smtpd_fork.observe.control.control.IDLE_SECONDS", 0.05)

    async def stall() -> None:
        async with serve(Discard()) as server, _control(server, tmp_path):
            for begun in (b"", STATUS[:5]):
                reader, writer = await asyncio.open_unix_connection(str(tmp_path / SOCKET))
                writer.write(begun)
                async with asyncio.timeout(PATIENCE):
                    assert await reader.read() == b""
                writer.close()

    asyncio.run(stall())


async def test_a_client_that_does_not_read_its_replies_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smtpd_fork.observe.control.control.REPLY_SECONDS", 0.05)
    gate = crowd(200)
    async with serve(Discard(), gate=gate) as server, _control(server, tmp_path) as control:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX) as deaf:
            deaf.setblocking(False)
            await loop.sock_connect(deaf, str(tmp_path / SOCKET))
            request = b'{"v":1,"command":"sessions","limit":200}\n'
            await loop.sock_sendall(deaf, request * 1000)
            await until_here(lambda: control._clients)
            await until_here(lambda: not control._clients)
        empty(gate)


class _control:  # noqa: N801 - reads like a function where it stands
    """The control socket of a server in this loop."""

    def __init__(self, server: Any, folder: Path) -> None:
        self.drained: list[float | None] = []
        listener = open_control(str(folder / SOCKET))
        self.control = Control(listener, server, self.drained.append)

    async def __aenter__(self) -> Control:
        await self.control.start()
        return self.control

    async def __aexit__(self, *_: object) -> None:
        await self.control.stop()
        assert not self.control._clients


def crowd(count: int) -> Gate:
    gate = Gate(limit_connections=count + 10, max_from_ip=0)
    for number in range(count):
        ticket = gate.admit((f"192.0.{number // 250}.{number % 250}", 25))
        assert isinstance(ticket, Ticket)
    return gate


def empty(gate: Gate) -> None:
    for ticket in gate.tickets():
        ticket.release()


async def test_five_thousand_sessions_come_in_pages_and_mail_in_between(tmp_path: Path) -> None:
    """No page is longer than a page, and nobody is on two of them or on none."""
    gate = crowd(5000)
    before = {entry.id for entry in gate.ledger()}
    async with (
        serve(Discard(), gate=gate) as server,
        _control(server, tmp_path),
        await Client.to(server.addresses[0]) as client,
    ):
        await client.greet()
        path = str(tmp_path / SOCKET)
        reader, writer = await asyncio.open_unix_connection(path, limit=MAX_REPLY)
        names: list[str] = []
        after = None
        while not names or after:
            request = {"v": 1, "command": "sessions", "limit": 2 * PAGE, "after": after}
            writer.write(json.dumps(request).encode() + b"\n")
            async with asyncio.timeout(PATIENCE):
                answer = await reader.readline()
            assert len(answer) <= MAX_REPLY
            page = json.loads(answer)
            assert len(page["sessions"]) <= 2 * PAGE
            names += [each["id"] for each in page["sessions"]]
            after = page["next"]
            if len(names) == 2 * PAGE:  # the first page's have gone meanwhile
                for ticket in [each for each in gate.tickets() if each.id in names]:
                    ticket.release()
            assert (await client.deliver()).code == 250
        writer.close()
        assert len(names) == len(set(names)) == 5001
        assert before < set(names)
        empty_of_peers(gate, server)


def empty_of_peers(gate: Gate, server: Any) -> None:
    for ticket in gate.tickets():
        if ticket.listener is None:
            ticket.release()


@pytest.mark.parametrize("kind", ["silent", "half a request", "deaf"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_client_that_hangs_does_not_hold_up_the_stop(
    tmp_path: Path, kind: str, number: signal.Signals
) -> None:
    with Daemon(*LOCAL, *CONTROL, cwd=tmp_path) as daemon, connect(tmp_path) as sock:
        sock.sendall({"silent": b"", "half a request": STATUS[:9], "deaf": STATUS * 500}[kind])
        daemon.signal(number)
        assert daemon.process.wait(PATIENCE) == 0
        while sock_left(sock):
            pass
        assert "Traceback" not in daemon.log
    assert not (tmp_path / SOCKET).exists()


def sock_left(sock: socket.socket) -> bytes:
    try:
        return sock.recv(1 << 16)
    except ConnectionError:
        return b""


# -- what answers may be anybody ---------------------------------------------------------------

EVIL = "\x1b]0;owned\x07\x9b2J\u202e[red]x[/red]"
STATUS_REPLY = {
    "v": 1, "ok": True, "version": EVIL, "pid": 1, "hostname": EVIL, "state": EVIL, "seconds": 1,
    "sessions": 1, "limit": 1, "phases": {EVIL: 1}, "sources": 1,
    "top": [{"source": EVIL, "sessions": 1}], "admitted": 1, "refused": 1, "rules": {EVIL: 1},
    "listeners": [EVIL], "limits_changed": [EVIL],
}  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (json.dumps(STATUS_REPLY, ensure_ascii=False).encode() + b"\n", os.EX_OK),
        (b'{"v":1,"ok":false,"fault":"failed","text":"\xc2\x9b2J"}\n', os.EX_SOFTWARE),
        (b'{"v":1,"ok":false,"fault":"new","text":"x"}\n', os.EX_PROTOCOL),
        (b'{"v":1,"ok":true}\n', os.EX_PROTOCOL),
        (b'{"v":9,"ok":true}\n', os.EX_PROTOCOL),
        (b"220 mx.example.com ESMTP\r\n", os.EX_PROTOCOL),
        (b"[]\n", os.EX_PROTOCOL),
        (b"[" * 100_000 + b"\n", os.EX_PROTOCOL),
        (b"x" * (MAX_REPLY + (1 << 17)), os.EX_PROTOCOL),
        (b"", os.EX_UNAVAILABLE),
        (b'{"v":1', os.EX_UNAVAILABLE),
    ],
    ids=[
        "evil",
        "fault",
        "new fault",
        "less",
        "version",
        "smtp",
        "list",
        "deep",
        "long",
        "eof",
        "half",
    ],
)
def test_whatever_answers_the_command_ends_with_a_line(
    tmp_path: Path, answer: bytes, status: int
) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / SOCKET))
        listening.listen()
        listening.settimeout(PATIENCE)

        def reply() -> None:
            sock, _ = listening.accept()
            with sock:
                sock.recv(MAX_REQUEST)
                try:
                    sock.sendall(answer)
                except OSError:
                    return  # it has read enough

        thread = threading.Thread(target=reply)
        thread.start()
        ended = command(tmp_path, "status")
        thread.join(PATIENCE)
    assert ended.returncode == status, ended
    assert all(char.isprintable() or char == "\n" for char in ended.stdout + ended.stderr)
    if status:
        assert only_line(ended)


def test_a_reader_that_has_seen_enough_is_no_fault(daemon: Daemon, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    words = ("status", "--watch", *CONTROL)
    process = subprocess.Popen(
        [*COMMAND, *words], cwd=tmp_path, stdout=writing, stderr=subprocess.PIPE
    )
    os.close(writing)
    try:
        _, complaint = process.communicate(timeout=PATIENCE)
        assert (process.returncode, complaint) == (0, b"")
    finally:
        end(process)
