"""Listeners: bound addresses, errors of binding, and errors while clients are accepted."""

from __future__ import annotations

import asyncio
import os
import re
import resource
import socket
import stat
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from support.client import Client
from support.handlers import Notes
from support.peers import needs_ipv6
from support.ports import free_port
from support.server import running, serve

from smtpd_fork import Config, Server
from smtpd_fork.errors import CannotCreateError, OperatingSystemError, SmtpdForkError
from smtpd_fork.listeners import Address, adopt, bind_all, open_listeners
from smtpd_fork.sinks import Discard
from smtpd_fork.smtp import SMTP

if TYPE_CHECKING:
    from pathlib import Path

    from smtpd_fork.listeners.accepted_client import AcceptedClient

# -- bind and listen ---------------------------------------------------------------------------


def open_some(*listen: str, port: int = 0) -> Any:
    return open_listeners(Config(listen=listen, port=(port,), backlog=16))


async def test_the_default_is_all_interfaces_with_ipv4_and_ipv6_on_one_port() -> None:
    needs_ipv6()
    async with serve(Discard(), listen=(), port=0) as server:
        port = server.addresses[0][1]
        for host in ("127.0.0.1", "127.0.0.2", "::1"):
            async with await Client.to((host, port)) as client:
                assert (await client.greet()).code == 250


async def test_both_wildcards_on_one_port_are_two_sockets() -> None:
    port = free_port()
    async with serve(Discard(), listen=[f"[::]:{port}", f"0.0.0.0:{port}"]) as server:
        assert len(server.addresses) == 2
        for host in ("127.0.0.1", "::1"):
            async with await Client.to((host, port)) as client:
                assert (await client.greet()).code == 250


async def test_a_mapped_address_is_plain_ipv4_for_handlers_and_for_the_gate() -> None:
    handler = Notes()
    async with serve(handler, listen=["[::]:0"]) as server:
        address = ("127.0.0.1", server.addresses[0][1])
        async with await Client.to(address, source="127.0.0.7") as client:
            await client.greet()
            assert server.gate.clients == {"127.0.0.7": 1}
    assert [session.peer[0] for session in handler.sessions] == ["127.0.0.7"]


@pytest.mark.parametrize(
    ("listen", "kind", "says"),
    [
        ("192.0.2.1:0", OperatingSystemError, "no interface of this host"),
        ("nosuch.invalid:0", SmtpdForkError, "nosuch.invalid"),
        ("a..b:0", SmtpdForkError, "a..b"),
        ("unix:/nosuch/folder/x.sock", CannotCreateError, "does not exist"),
        (f"unix:{__file__}", CannotCreateError, "not a socket"),
        ("unix:/dev/null/x", CannotCreateError, "not a directory"),
    ],
)
def test_the_error_explains_why_an_address_cannot_be_bound(
    listen: str, kind: type[Exception], says: str
) -> None:
    with pytest.raises(kind, match=re.escape(says)):
        open_some(listen)


def test_when_one_address_fails_none_stays_bound(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OperatingSystemError, match="in use by another program"):
            open_some(f"unix:{path}", "127.0.0.1:0", f"127.0.0.1:{port}")
    assert not path.exists()


@pytest.mark.parametrize("backlog", [-5, 0, 1, 10**6, 2**40])
def test_any_backlog_is_limited_to_the_range_of_listen(backlog: int) -> None:
    listeners = bind_all([Address(host="127.0.0.1", port=0)], backlog=backlog, socket_mode=0o660)
    with socket.create_connection(listeners[0].bound, timeout=5):
        pass
    listeners[0].close()


def test_an_inherited_socket_listens_or_the_error_explains_why_not(tmp_path: Path) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        assert adopt(sock, backlog=5).bound == sock.getsockname()
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
        pytest.raises(OperatingSystemError, match="that kind of socket cannot listen"),
    ):
        adopt(datagrams, backlog=5)
    closed = socket.socket()
    closed.close()
    with pytest.raises(OperatingSystemError, match="not open"):
        adopt(closed, backlog=5)
    read, write = os.pipe()
    no_socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    os.dup2(read, no_socket.fileno())
    with no_socket, pytest.raises(OperatingSystemError, match="not a socket"):
        adopt(no_socket, backlog=5)
    os.close(read)
    os.close(write)
    connected, other = socket.socketpair()
    with connected, other, pytest.raises(OperatingSystemError, match="connected or shut down"):
        adopt(connected, backlog=5)


def test_a_client_s_socket_has_the_family_and_type_as_numbers_and_can_be_detached() -> None:
    (listener,) = bind_all([Address(host="127.0.0.1", port=0)], backlog=1, socket_mode=0o660)
    with socket.create_connection(listener.bound) as client:
        sock, peer = listener.accept()
        assert peer == client.getsockname()
        assert (sock.family, sock.type) == (socket.AF_INET, socket.SOCK_STREAM)
        assert (type(sock.family), type(sock.type)) == (int, int)
        os.close(sock.detach())
        assert sock.fileno() == -1
        assert client.recv(1) == b""
    listener.close()


async def test_a_server_serves_on_a_socket_that_it_was_given() -> None:
    sock = socket.create_server(("127.0.0.1", 0))
    async with (
        serve(Discard(), sockets=[sock]) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        assert (await client.greet()).code == 250


# -- unix sockets ------------------------------------------------------------------------------


async def test_a_unix_socket_receives_mail_and_is_removed_with_the_server(tmp_path: Path) -> None:
    path = tmp_path / "smtpd.sock"
    async with serve(Discard(), listen=[f"unix:{path}"], socket_mode=0o600) as server:
        assert server.addresses == [str(path)]
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        async with await Client.to(str(path)) as client:
            await client.greet()
            assert (await client.deliver()).code == 250
    assert not path.exists()


async def test_a_stale_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "smtpd.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    async with serve(Discard(), listen=[f"unix:{path}"]) as server:
        with pytest.raises(OperatingSystemError, match="another program answers there"):
            open_some(f"unix:{path}")
        async with await Client.to(server.addresses[0]) as client:
            assert (await client.greet()).code == 250


async def test_a_path_that_another_process_has_bound_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "smtpd.sock"
    async with serve(Discard(), listen=[f"unix:{path}"]):
        path.unlink()
        other = socket.socket(socket.AF_UNIX)
        other.bind(str(path))
    assert path.exists()
    other.close()


# -- errors ------------------------------------------------------------------------------------


async def test_a_client_that_resets_before_accept_has_no_effect(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serve(Discard()) as server:
        server.gate.pause()
        clients = [await Client.to(server.addresses[0]) for _ in range(20)]
        for client in clients:
            client.reset()
        server.gate.resume()
        async with await Client.to(server.addresses[0]) as client:
            assert (await client.greet()).code == 250
    assert not [r for r in caplog.records if r.levelname in {"ERROR", "WARNING"}]


async def test_without_free_descriptors_clients_get_421_until_some_are_free(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("smtpd_fork.listeners.acceptor.STARVED_SECONDS", 0.05)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with serve(Discard()) as server:
        sockets = [socket.socket() for _ in range(6)]
        for sock in sockets:
            sock.setblocking(False)
        highest = max(sock.fileno() for sock in sockets)
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
        loop = asyncio.get_running_loop()
        holes: list[int] = []
        try:
            with pytest.raises(OSError, match="Too many open files"):
                holes.extend(os.open(os.devnull, os.O_RDONLY) for _ in count())
            for sock in sockets:
                await loop.sock_connect(sock, server.addresses[0])
            for sock in sockets:
                async with asyncio.timeout(10):
                    assert (await loop.sock_recv(sock, 4096)).startswith(b"421 4.3.2 ")
        finally:
            for hole in holes:
                os.close(hole)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for sock in sockets:
                sock.close()
        async with await Client.to(server.addresses[0]) as client:
            assert (await client.greet()).code == 250
    logged = [r.getMessage() for r in caplog.records if r.name == "smtpd_fork.listeners"]
    assert [line.split(":")[0].split(";")[0] for line in logged] == [
        "cannot accept",
        "accepting again",
    ]
    assert "6 clients were answered 421" in logged[1]


async def test_the_acceptor_stays_stopped_after_a_stop_within_a_burst(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve(Discard()) as server:
        acceptor = running(server).acceptor

        def stop(client: AcceptedClient) -> None:
            acceptor.stop()
            client.reply_and_close(b"421 4.3.2 stopping\r\n")

        monkeypatch.setattr(acceptor, "_on_accepted", stop)
        async with await Client.to(server.addresses[0]) as client:
            assert (await client.reply()).code == 421
        acceptor.open()
        assert acceptor.stopped
    assert "cannot accept" not in caplog.text


async def test_a_session_that_cannot_be_created_frees_its_slot(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Fails(SMTP):
        def __init__(self, *args: Any, **options: Any) -> None:
            raise ValueError("a user's constructor")

    async with serve(Discard(), session_class=Fails) as server:
        async with await Client.to(server.addresses[0]) as client:
            assert await client.ended()
    assert "cannot begin a session" in caplog.text


async def test_a_server_whose_start_fails_leaves_nothing_bound(tmp_path: Path) -> None:
    class Broken(Discard):
        def prepare(self) -> None:
            raise CannotCreateError("no")

    server = Server(Broken(), listen=[f"unix:{tmp_path / 'x.sock'}"])
    with pytest.raises(CannotCreateError):
        await server.start()
    assert list(tmp_path.iterdir()) == []
