"""From address to accepted socket: what is bound, who waits, who is refused, and by whom."""

from __future__ import annotations

import asyncio
import os
import re
import resource
import socket
import stat
from contextlib import suppress
from itertools import count, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.client import Client
from support.handlers import Notes
from support.server import serve, until

from smtpd_fork import Gate, Limits, Server
from smtpd_fork.config import SettingError
from smtpd_fork.errors import CannotCreateError, OperatingSystemError, SmtpdForkError
from smtpd_fork.listeners import Address, adopt, bind_all, open_listeners, parse_address, spread
from smtpd_fork.sinks import Discard

if TYPE_CHECKING:
    from support.tls import Certificates


# -- addresses ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1", Address(host="127.0.0.1")),
        ("127.0.0.1:25", Address(host="127.0.0.1", port=25)),
        ("localhost:0", Address(host="localhost", port=0)),
        ("*", Address(host="*")),
        ("*:25", Address(host="*", port=25)),
        ("[::1]", Address(host="::1")),
        ("[::1]:25", Address(host="::1", port=25)),
        ("::1", Address(host="::1")),
        ("fe80::1%lo", Address(host="fe80::1%lo")),
        ("smtps:127.0.0.1:465", Address("smtps", "127.0.0.1", 465)),
        ("smtps:[::1]:465", Address("smtps", "::1", 465)),
        ("unix:/run/x.sock", Address(path=Path("/run/x.sock"))),
        ("smtps:unix:/run/x.sock", Address("smtps", path=Path("/run/x.sock"))),
    ],
)
def test_an_address_is_read_as_people_write_it(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        "", ":25", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:-1", "127.0.0.1:65536", "127.0.0.1:+1",
        "127.0.0.1:1_0", "127.0.0.1: 1", "127.0.0.1:\u0661", "[::1", "::1]", "[::1]25", "[::1]:",
        "[127.0.0.1]:25", "1::2::3", "a b:25", "unix:", "unix:\0", "unix:/" + "x" * 108,
        "host/path", "-dash:25",
    ],
)  # fmt: skip
def test_what_is_no_address_is_named_in_the_error(text: str) -> None:
    with pytest.raises(SettingError) as caught:
        parse_address(text)
    assert caught.value.value == text
    assert "\n" not in str(caught.value)


@given(st.text(max_size=40))
def test_any_text_is_an_address_or_an_error(text: str) -> None:
    with suppress(SettingError):
        assert isinstance(parse_address(text), Address)


def test_an_address_without_a_port_is_bound_on_every_port() -> None:
    addresses = [parse_address(text) for text in ("127.0.0.1", "[::1]:25", "unix:/x")]
    assert [str(a) for a in spread(addresses, [2525, 2526])] == [
        "127.0.0.1:2525",
        "127.0.0.1:2526",
        "[::1]:25",
        "unix:/x",
    ]


def test_the_same_address_twice_is_bound_once() -> None:
    addresses = [parse_address("127.0.0.1"), parse_address("127.0.0.1:25")]
    assert len(spread(addresses, [25, 25])) == 1


# -- bind and listen ---------------------------------------------------------------------------


def open_some(*listen: str, port: int = 0) -> Any:
    return open_listeners(listen, [port], backlog=16, socket_mode=0o660)


async def test_the_default_is_all_interfaces_with_ipv4_and_ipv6_on_one_port() -> None:
    async with serve(Discard(), listen=(), port=0) as server:
        port = server.addresses[0][1]
        for host in ("127.0.0.1", "127.0.0.2", "::1"):
            async with await Client.to((host, port)) as client:
                assert (await client.greet()).code == 250


async def test_both_wildcards_on_one_port_are_two_sockets() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
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
            assert server.gate.sources == {"127.0.0.7": 1}
    assert [session.peer[0] for session in handler.sessions] == ["127.0.0.7"]


@pytest.mark.parametrize(
    ("listen", "kind", "says"),
    [
        ("192.0.2.1:0", OperatingSystemError, "no interface of this host"),
        ("nosuch.invalid:0", SmtpdForkError, "nosuch.invalid"),
        ("a..b:0", SmtpdForkError, "a..b"),
        ("unix:/nosuch/folder/x.sock", CannotCreateError, "does not exist"),
        ("unix:/dev/null", CannotCreateError, "not a socket"),
        ("unix:/dev/null/x", CannotCreateError, "not a directory"),
    ],
)
def test_an_address_that_cannot_be_bound_is_told_by_its_meaning(
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
def test_any_backlog_is_taken_as_listen_takes_it(backlog: int) -> None:
    listeners = bind_all([Address(host="127.0.0.1", port=0)], backlog=backlog, socket_mode=0o660)
    with socket.create_connection(listeners[0].bound, timeout=5):
        pass
    listeners[0].close()


def test_an_inherited_socket_listens_and_one_that_cannot_is_told_why(tmp_path: Path) -> None:
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


async def test_a_server_serves_on_a_socket_that_it_was_given() -> None:
    sock = socket.create_server(("127.0.0.1", 0))
    async with (
        serve(Discard(), sockets=[sock]) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        assert (await client.greet()).code == 250


# -- unix sockets ------------------------------------------------------------------------------


async def test_mail_comes_in_by_a_unix_socket_that_goes_with_the_server(tmp_path: Path) -> None:
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


async def test_a_path_that_somebody_else_bound_meanwhile_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "smtpd.sock"
    async with serve(Discard(), listen=[f"unix:{path}"]):
        path.unlink()
        other = socket.socket(socket.AF_UNIX)
        other.bind(str(path))
    assert path.exists()
    other.close()


# -- defer and refuse --------------------------------------------------------------------------


async def test_defer_leaves_a_client_waiting_until_a_place_is_free() -> None:
    async with serve(Discard(), limit_connections=1) as server:
        first = await Client.to(server.addresses[0])
        await first.greet()
        second = await Client.to(server.addresses[0])
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(
                asyncio.shield(asyncio.ensure_future(second.reader.read(1))), 0.1
            )
        assert server.gate.count == 1
        await first.close()
        await until(lambda: server.gate.count_from("127.0.0.1") == 1)
        third = await Client.to(server.addresses[0])
        await second.close()
        assert (await third.reply()).code == 220
        await third.close()


async def test_refuse_answers_at_once() -> None:
    async with serve(Discard(), limit_connections=1, when_full="refuse") as server:
        async with await Client.to(server.addresses[0]) as first:
            await first.greet()
            async with await Client.to(server.addresses[0]) as second:
                code, (text,) = await second.reply()
                says, _, name = text.partition(" [")
                assert code == 421
                assert says == "4.3.2 mx.example.com Too many connections, try again later"
                explanation = server.gate.explain(name.rstrip("]"))
                assert explanation is not None
                assert explanation.refusal.rule == "limit_connections"
                assert await second.ended()
        assert server.gate.count <= 1


async def test_defer_with_a_time_refuses_when_it_is_up() -> None:
    async with (
        serve(Discard(), limit_connections=1, when_full="defer:200ms") as server,
        await Client.to(server.addresses[0]) as first,
    ):
        await first.greet()
        loop = asyncio.get_running_loop()
        begun = loop.time()
        clients = [await Client.to(server.addresses[0]) for _ in range(5)]
        for client in clients:
            assert (await client.reply()).code == 421
            assert loop.time() - begun >= 0.19
            await client.close()
        assert server.gate.count == 1


async def test_defer_with_a_time_lets_in_who_has_waited_longest() -> None:
    async with serve(Discard(), limit_connections=1, when_full="defer:60") as server:
        first = await Client.to(server.addresses[0])
        await first.greet()
        clients = [first, *[await Client.to(server.addresses[0]) for _ in range(4)]]
        for before, client in pairwise(clients):
            await before.close()
            assert (await client.reply()).code == 220
        await clients[-1].close()


async def test_the_waiting_room_is_bounded_and_the_rest_stays_in_the_backlog() -> None:
    options = {"limit_connections": 1, "when_full": "defer:300ms", "backlog": 2}
    async with serve(Discard(), **options) as server:
        first = await Client.to(server.addresses[0])
        await first.greet()
        clients = [await Client.to(server.addresses[0]) for _ in range(4)]
        for client in clients:
            assert (await client.reply()).code == 421
            await client.close()
        await first.close()


async def test_a_source_over_its_limit_is_refused_with_its_address(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serve(Discard(), max_from_ip=1) as server:
        async with await Client.to(server.addresses[0]) as first:
            await first.greet()
            for _ in range(3):
                async with await Client.to(server.addresses[0]) as second:
                    code, (text,) = await second.reply()
                    says = "Too many connections from 127.0.0.1, try again later"
                    assert code == 421
                    assert text.startswith(f"4.7.0 mx.example.com {says} [")
            async with await Client.to(server.addresses[0], source="127.0.0.2") as other:
                assert (await other.greet()).code == 250
    lines = [r.getMessage() for r in caplog.records if r.name == "smtpd_fork.gate"]
    records = [r for r in caplog.records if r.name == "smtpd_fork.gate"]
    refusal = records[0].refusal  # type: ignore[attr-defined]  # what the gate adds to a record
    assert (refusal.rule, refusal.key) == ("max_from_ip", "127.0.0.1")
    assert (refusal.count, refusal.limit) == (2, 1)
    told = r"refused 127\.0\.0\.1: max_from_ip \(2 > 1\) \[\w+-\w+\]"
    assert re.fullmatch(told, lines[0])
    assert re.fullmatch(told + r"; 2 more in \d s", lines[-1])
    assert len(lines) == 2


async def test_an_early_talker_gets_its_refusal_and_no_reset() -> None:
    async with serve(Discard(), max_from_ip=1) as server:
        async with await Client.to(server.addresses[0]) as first:
            await first.greet()
            with socket.socket() as talker:
                talker.setblocking(False)
                loop = asyncio.get_running_loop()
                await loop.sock_connect(talker, server.addresses[0])
                await loop.sock_sendall(talker, b"EHLO early\r\n")
                assert (await loop.sock_recv(talker, 4096)).startswith(b"421 4.7.0 ")


async def test_a_full_tls_port_closes_without_a_line_that_no_tls_client_could_read(
    certificates: Certificates,
) -> None:
    options = {
        "listen": ["smtps:127.0.0.1:0"],
        "tls_context": certificates.server,
        "max_from_ip": 1,
    }
    async with serve(Discard(), **options) as server:
        async with await Client.to(server.addresses[0], tls=certificates.client) as first:
            await first.greet()
            async with await Client.to(server.addresses[0]) as second:
                assert await second.reader.read() == b""


async def test_every_listener_has_its_turn_when_places_are_short() -> None:
    """With one place and a surplus everywhere, no listener takes them all."""
    served: list[int] = []

    class Count(Discard):
        async def handle_CONNECT(self, server: Any, session: Any) -> str:
            served.append(session.local[1])
            return "421 4.3.2 Next, please"

    options = {"listen": ["127.0.0.1:0"] * 3, "limit_connections": 1}
    async with serve(Count(), **options) as server:
        server.gate.pause()
        clients = [await Client.to(address) for _ in range(10) for address in server.addresses]
        server.gate.resume()
        for client in clients:
            assert (await client.reply()).code == 421
            await client.close()
        first_round = served[:6]
        assert {first_round.count(address[1]) for address in server.addresses} == {2}


async def test_a_pause_of_the_gate_defers_and_its_end_serves() -> None:
    async with serve(Discard()) as server:
        server.gate.pause()
        client = await Client.to(server.addresses[0])
        assert server.gate.count == 0
        server.gate.resume()
        assert (await client.greet()).code == 250
        await client.close()


async def test_a_raised_limit_lets_in_who_waits() -> None:
    async with serve(Discard(), limit_connections=1) as server:
        first = await Client.to(server.addresses[0])
        await first.greet()
        second = await Client.to(server.addresses[0])
        server.gate.limits = Limits(limit_connections=2)
        assert (await second.greet()).code == 250
        await first.close()
        await second.close()


async def test_two_servers_with_one_gate_share_its_places() -> None:
    gate = Gate(limit_connections=1)
    async with serve(Discard(), gate=gate) as one, serve(Discard(), gate=gate) as other:
        first = await Client.to(one.addresses[0])
        await first.greet()
        second = await Client.to(other.addresses[0])
        assert other.sessions == 0
        await first.close()
        assert (await second.greet()).code == 250
        assert gate.count == 1
        await second.close()


# -- trouble -----------------------------------------------------------------------------------


async def test_a_client_that_resets_before_accept_is_nothing(
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


async def test_out_of_descriptors_clients_are_told_421_and_service_comes_back(
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
    told = [r.getMessage() for r in caplog.records if r.name == "smtpd_fork.listeners"]
    assert [line.split(":")[0].split(";")[0] for line in told] == [
        "cannot accept",
        "accepting again",
    ]
    assert "6 clients were answered 421" in told[1]


async def test_a_session_that_cannot_be_made_gives_its_place_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serve(Discard(), session_options={"nonsense": 1}) as server:
        async with await Client.to(server.addresses[0]) as client:
            assert await client.ended()
    assert "a session could not be begun" in caplog.text


async def test_a_server_whose_start_fails_leaves_nothing_bound(tmp_path: Path) -> None:
    class Broken(Discard):
        def prepare(self) -> None:
            raise CannotCreateError("no")

    server = Server(Broken(), listen=[f"unix:{tmp_path / 'x.sock'}"])
    with pytest.raises(CannotCreateError):
        await server.start()
    assert list(tmp_path.iterdir()) == []
