"""The control socket under load: floods, stalls and thousands of sessions do not delay mail."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from support.client import Client
from support.control import CONTROL, SOCKET, STATUS, ask, command, connect, line
from support.daemon import LOCAL, PATIENCE, Daemon, until
from support.place import only_line
from support.server import serve
from support.server import until as until_here

from smtpd_fork import Gate, Ticket
from smtpd_fork.control_protocol import MAX_REPLY, PAGE
from smtpd_fork.observe.control import Control, open_control
from smtpd_fork.observe.control.control import MAX_CLIENTS
from smtpd_fork.observe.reload_outcome import ReloadOutcome
from smtpd_fork.sinks import Discard

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_the_number_of_clients_is_limited_and_the_next_gets_an_error(
    daemon: Daemon, tmp_path: Path
) -> None:
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
def test_control_clients_do_not_delay_mail(daemon: Daemon, tmp_path: Path, kind: str) -> None:
    done = threading.Event()

    def misbehave() -> None:
        while not done.is_set():
            with ExitStack() as stack:
                try:
                    clients = [stack.enter_context(connect(tmp_path)) for _ in range(MAX_CLIENTS)]
                    for sock in clients:
                        ATTACKS[kind](sock)
                except OSError:
                    continue  # refused, cut, or its timeout has passed: try again
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


def test_a_client_that_stalls_is_closed_after_the_timeout(
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
    """The control socket of a server in this event loop."""

    def __init__(self, server: Any, folder: Path) -> None:
        self.drained: list[float | None] = []
        listener = open_control(str(folder / SOCKET))
        self.control = Control(listener, server, self.drained.append, reload)

    async def __aenter__(self) -> Control:
        await self.control.start()
        return self.control

    async def __aexit__(self, *_: object) -> None:
        await self.control.stop()
        assert not self.control._clients


async def reload(_: str) -> ReloadOutcome:
    return ReloadOutcome()


def crowd(count: int) -> Gate:
    gate = Gate(limit_connections=count + 10, max_from_ip=0)
    for number in range(count):
        ticket = gate.admit((f"192.0.{number // 250}.{number % 250}", 25))
        assert isinstance(ticket, Ticket)
    return gate


def empty(gate: Gate) -> None:
    for ticket in gate.tickets():
        ticket.release()


async def test_five_thousand_sessions_are_listed_in_pages_without_delaying_mail(
    tmp_path: Path,
) -> None:
    """The length of a page is limited, and each session is on exactly one page."""
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
            if len(names) == 2 * PAGE:  # the sessions of the first page have ended meanwhile
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
def test_a_client_that_hangs_does_not_delay_the_stop(
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
