"""Health: the health check of the container, with healthy and unhealthy daemons."""

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
async def test_a_daemon_that_sends_a_greeting_is_healthy_and_the_slot_is_free_again(
    tmp_path: Path, certificates: Certificates, listen: str
) -> None:
    options = {"tls_context": certificates.server, "listen": [listen.format(folder=tmp_path)]}
    async with serve(Discard(), **options) as server:
        reply = await asyncio.to_thread(health.probe, address_of(server))
        assert reply.startswith("220 mx.example.com ")
        await until(lambda: server.gate.count == 0)


async def test_with_a_proxy_header_the_check_names_no_client() -> None:
    options = {"listen": ["smtp+proxy:127.0.0.1:0"], "proxy_trust": "127.0.0.1"}
    async with serve(Discard(), **options) as server:
        assert (await asyncio.to_thread(health.probe, address_of(server))).startswith("220 ")


async def test_a_daemon_that_answers_421_is_healthy() -> None:
    options = {"limit_connections": 1, "when_full": "refuse"}
    async with serve(Discard(), **options) as server:
        async with await Client.to(server.addresses[0]) as client:
            await client.greet()
            assert (await asyncio.to_thread(health.probe, address_of(server))).startswith("421 ")


async def test_the_check_can_use_a_reserved_slot() -> None:
    options: dict[str, Any] = {"limit_connections": 2, "reserve": 1, "exempt": "127.0.0.1/32"}
    async with serve(Discard(), **options) as server:
        async with await Client.to(server.addresses[0], source="127.0.0.7") as client:
            await client.greet()
            assert (await asyncio.to_thread(health.probe, address_of(server))).startswith("220 ")


def test_a_daemon_that_hangs_is_not_healthy() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as hung:
        address = Address(host="127.0.0.1", port=hung.getsockname()[1])
        with pytest.raises(TimeoutError):
            health.probe(address, seconds=0.1)


@pytest.mark.parametrize("says", [b"", b"554 5.3.2 no\r\n", b"\x00" * 5000, b"HTTP/1.1 200 OK\r\n"])
def test_an_invalid_greeting_is_not_healthy(
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


def test_a_missing_daemon_is_an_error_in_one_line(
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
def test_the_arguments_of_the_daemon_are_those_after_its_name(
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
def test_the_check_connects_to_a_plaintext_address(arguments: list[str], place: str) -> None:
    assert str(health._address(arguments)) == place
