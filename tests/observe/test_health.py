"""Health: the probe of the container, and what it makes of a daemon that is well or not."""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from support.client import Client
from support.server import serve, until

from smtpd_fork.cli import health
from smtpd_fork.listeners import Address, parse_address
from smtpd_fork.sinks import Discard

if TYPE_CHECKING:
    from pathlib import Path

    from support.tls import Certificates


def address_of(server: Any) -> Address:
    listener = server.listeners[0]
    if listener.path is not None:
        return parse_address(f"{listener.address.scheme}:unix:{listener.path}")
    return Address(listener.address.scheme, listener.bound[0], listener.bound[1])


@pytest.mark.parametrize(
    "listen", ["127.0.0.1:0", "[::1]:0", "smtps:127.0.0.1:0", "lmtp:unix:{folder}/x.sock"]
)
async def test_a_daemon_that_greets_is_well_and_has_its_place_back(
    tmp_path: Path, certificates: Certificates, listen: str
) -> None:
    options = {"tls_context": certificates.server, "listen": [listen.format(folder=tmp_path)]}
    async with serve(Discard(), **options) as server:
        reply = await asyncio.to_thread(health.probe, address_of(server))
        assert reply.startswith("220 mx.example.com ")
        await until(lambda: server.gate.count == 0)


async def test_behind_a_proxy_it_speaks_for_nobody() -> None:
    options = {"listen": ["smtp+proxy:127.0.0.1:0"], "proxy_trust": "127.0.0.1"}
    async with serve(Discard(), **options) as server:
        assert (await asyncio.to_thread(health.probe, address_of(server))).startswith("220 ")


async def test_a_daemon_that_says_it_is_full_is_well() -> None:
    options = {"limit_connections": 1, "when_full": "refuse"}
    async with serve(Discard(), **options) as server:
        async with await Client.to(server.addresses[0]) as client:
            await client.greet()
            assert (await asyncio.to_thread(health.probe, address_of(server))).startswith("421 ")


async def test_with_a_place_in_reserve_it_comes_in_though_all_others_are_taken() -> None:
    options: dict[str, Any] = {"limit_connections": 2, "reserve": 1, "exempt": "127.0.0.1/32"}
    async with serve(Discard(), **options) as server:
        async with await Client.to(server.addresses[0], source="127.0.0.7") as client:
            await client.greet()
            assert (await asyncio.to_thread(health.probe, address_of(server))).startswith("220 ")


def test_a_daemon_that_hangs_is_not_well() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as hung:
        address = Address(host="127.0.0.1", port=hung.getsockname()[1])
        with pytest.raises(TimeoutError):
            health.probe(address, seconds=0.1)


@pytest.mark.parametrize("says", [b"", b"554 5.3.2 no\r\n", b"\x00" * 5000, b"HTTP/1.1 200 OK\r\n"])
def test_what_is_no_greeting_is_not_well(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], says: bytes
) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as other:

        def answer() -> None:
            with other.accept()[0] as client:
                client.sendall(says)

        thread = threading.Thread(target=answer)
        thread.start()
        port = other.getsockname()[1]
        monkeypatch.setenv("SMTPD_FORK_LISTEN_ADDRESS", f"127.0.0.1:{port}")
        assert health.main() == 1
        thread.join()
    out = capsys.readouterr().out
    assert out.startswith("unhealthy: ")
    assert out.count("\n") == 1


def test_nobody_there_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("SMTPD_FORK_LISTEN_ADDRESS", f"127.0.0.1:{port}")
    assert health.main() == 1
    assert "Connection refused" in capsys.readouterr().out
    monkeypatch.setenv("SMTPD_FORK_PORT", "many")
    assert health.main() == 1
    assert "many" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command_line", "arguments"),
    [
        (b"/opt/x/bin/python\0/opt/x/bin/smtpd-fork\0", []),
        (b"python\0/opt/x/bin/smtpd-fork\0-p\x0025\0", ["-p", "25"]),
        (b"/sbin/docker-init\0--\0smtpd-fork\0-l\0[::1]:25\0", ["-l", "[::1]:25"]),
        (b"/pause\0", []),
        (b"", []),
        (b"\xff\0smtpd-fork\0\xff\0", ["\udcff"]),
    ],
)
def test_the_arguments_of_the_daemon_are_those_behind_its_name(
    command_line: bytes, arguments: list[str]
) -> None:
    assert health.daemon_arguments(command_line) == arguments


@pytest.mark.parametrize(
    ("arguments", "place"),
    [
        ([], "*:2525"),
        (["-p", "25"], "*:25"),
        (["-l", "unix:/x", "-l", "smtps:[::1]:465"], "smtps:[::1]:465"),
        (["-l", "smtp+proxy:0.0.0.0:26", "-l", "127.0.0.1:27"], "127.0.0.1:27"),
        (["-l", "unix:/x"], "unix:/x"),
    ],
)
def test_it_asks_where_a_plain_client_would(arguments: list[str], place: str) -> None:
    assert str(health._address(arguments)) == place
