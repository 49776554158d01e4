"""Probes of load balancers: they get an answer, without a slot, a session, or a log line."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest
from support.client import Client
from support.daemon import LOCAL, Daemon
from support.dialogue import connect
from support.handlers import Notes
from support.haproxy import haproxy
from support.server import running, serve, until

from smtpd_fork.config import WhenFull
from smtpd_fork.listeners.probes import MAX_BYTES, MAX_PROBES
from smtpd_fork.sinks import Discard

if TYPE_CHECKING:
    from pathlib import Path

    from support.tls import Certificates

    from smtpd_fork import Server

PROBE = "127.0.0.9"
"""Address of the probes in these tests; all other clients use 127.0.0.1."""

LOCAL_V2 = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00"
FOR_ITSELF = b"PROXY TCP4 127.0.0.9 127.0.0.1 4711 25\r\n"
UNKNOWN = b"PROXY UNKNOWN\r\n"
FOR_ANOTHER = b"PROXY TCP4 192.0.2.7 127.0.0.1 4711 25\r\n"


def probed(handler: Any = None, **options: Any) -> Any:
    return serve(handler or Discard(), probe_from="127.0.0.8/31", **options)


def proxied(handler: Any = None, **options: Any) -> Any:
    options.setdefault("proxy_trust", PROBE)
    return probed(handler, listen=["smtp+proxy:127.0.0.1:0"], **options)


async def probe(server: Server, source: str = PROBE) -> Client:
    return await Client.to(server.addresses[0], source=source)


async def ended(client: Client) -> None:
    assert (await client.reply()).code == 0


async def test_a_probe_gets_the_greeting_without_a_slot_or_a_log_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    handler = Notes()
    async with probed(handler) as server:
        before = len(caplog.records)
        async with await probe(server) as client:
            assert (await client.reply()).code == 220
            assert (server.gate.count, server.sessions) == (0, 0)
            assert [(await client.say(word)).code for word in ("EHLO lb", "HELO lb", "noop")] == (
                [250, 250, 250]
            )
            assert (await client.say("QUIT")).code == 221
            await ended(client)
        assert handler.sessions == []
        assert server.gate.stats() == {"admitted": 0, "refused": 0}
        assert len(caplog.records) == before


async def test_a_probe_that_only_connects_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with probed() as server:
        before = len(caplog.records)
        probes = running(server).probes
        for _ in range(20):
            (await asyncio.to_thread(connect, server.addresses[0], source=PROBE)).close()
        async with await probe(server) as client:
            assert (await client.reply()).code == 220
            await until(lambda: len(probes) == 1)  # the others are gone
        await until(lambda: not len(probes))
        assert len(caplog.records) == before


async def test_other_clients_have_normal_sessions() -> None:
    async with probed() as server:
        async with await Client.to(server.addresses[0]) as client:
            await client.greet()
            assert server.gate.count == 1
            assert (await client.deliver()).code == 250


@pytest.mark.parametrize("word", ["MAIL FROM:<a@example.com>", "STARTTLS", "GET / HTTP/1.0", ""])
async def test_commands_that_a_probe_does_not_need_get_421(word: str) -> None:
    async with probed() as server:
        async with await probe(server) as client:
            await client.reply()
            assert (await client.say("EHLO lb", word)).code == 421
            await ended(client)


async def test_the_bytes_of_a_probe_are_limited() -> None:
    async with probed() as server:
        async with await probe(server) as client:
            await client.reply()
            client.send("x" * MAX_BYTES)
            assert (await client.reply()).code == 421
            await ended(client)


async def test_the_duration_of_a_probe_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smtpd_fork.listeners.probes.MAX_SECONDS", 0.05)
    async with probed() as server:
        async with await probe(server) as client:
            assert (await client.reply()).code == 220
            await ended(client)


async def test_the_number_of_concurrent_probes_is_limited() -> None:
    async with probed() as server, AsyncExitStack() as stack:
        for _ in range(MAX_PROBES):
            client = await stack.enter_async_context(await probe(server))
            assert (await client.reply()).code == 220
        async with await probe(server) as late:
            assert (await late.reply()).code == 421
            await ended(late)
        assert server.gate.count == 0


@pytest.mark.parametrize("how", ["defer", "defer:9", "refuse"])
async def test_a_probe_gets_the_greeting_when_all_slots_are_in_use(how: str) -> None:
    options = {"limit_connections": 1, "when_full": WhenFull.parse(how)}
    async with probed(**options) as server, AsyncExitStack() as stack:
        first = await stack.enter_async_context(await Client.to(server.addresses[0]))
        await first.greet()
        if how != "refuse":
            waiting = await stack.enter_async_context(await Client.to(server.addresses[0]))
        async with await probe(server) as client:
            assert (await client.reply()).code == 220
            assert server.gate.count == 1
        assert (await first.say("QUIT")).code == 221
        if how != "refuse":
            assert (await waiting.reply()).code == 220  # in its turn


async def test_a_probe_gets_421_while_the_gate_is_paused() -> None:
    async with probed() as server:
        server.gate.pause()
        async with await probe(server) as client:
            reply = await client.reply()
            assert (reply.code, reply.text.partition(", ")[0]) == (
                421,
                "4.3.2 mx.example.com Service not available",
            )
            await ended(client)
        server.gate.resume()
        async with await probe(server) as client:
            assert (await client.reply()).code == 220


async def test_a_probe_gets_421_at_a_stop() -> None:
    async with probed() as server:
        async with await probe(server) as client:
            assert (await client.reply()).code == 220
            await server.stop()
            assert "Service shutting down" in (await client.reply()).text
            await ended(client)


async def test_a_probe_on_an_implicit_tls_port_is_only_connected(
    certificates: Certificates,
) -> None:
    options: dict[str, Any] = {"listen": ["smtps:127.0.0.1:0"], "tls_context": certificates.server}
    async with probed(**options) as server:
        probes = running(server).probes
        async with await probe(server) as client:
            await until(lambda: len(probes) == 1)
            client.send("EHLO lb\r\n")
            await ended(client)


async def test_a_reload_reads_the_networks_of_probes_again(tmp_path: Path) -> None:
    networks = tmp_path / "probes"
    networks.write_text("192.0.2.1\n")
    async with serve(Discard(), probe_from=str(networks)) as server:
        async with await probe(server) as client:
            await client.greet()
            assert server.gate.count == 1
        networks.write_text(f"{PROBE}\n")
        await server.reload()
        await until(lambda: not server.gate.count)
        async with await probe(server) as client:
            await client.greet()
            assert server.gate.count == 0


# -- on a listener with PROXY headers --------------------------------------------------------------


@pytest.mark.parametrize("header", [LOCAL_V2, UNKNOWN, FOR_ITSELF, b""])
@pytest.mark.parametrize("trust", [PROBE, "192.0.2.1"])
async def test_a_connection_without_a_client_in_a_header_is_a_probe(
    header: bytes, trust: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with proxied(proxy_trust=trust) as server:
        before = len(caplog.records)
        async with await probe(server) as client:
            if header:
                client.send(header)
            assert (await client.reply()).code == 220
            assert server.gate.count == 0
            assert (await client.say("EHLO lb")).code == 250
            assert (await client.say("QUIT")).code == 221
        async with await probe(server):
            pass  # it only connects
        probes = running(server).probes
        await until(lambda: not len(probes))
        assert len(caplog.records) == before


@pytest.mark.parametrize("parts", [1, 2])
async def test_a_header_that_names_a_client_begins_a_session(parts: int) -> None:
    handler = Notes()
    async with proxied(handler) as server:
        async with await probe(server) as client:
            half = len(FOR_ANOTHER) // parts
            client.send(FOR_ANOTHER[:half])
            if parts == 2:
                await until(lambda: server.gate.count)  # it is not a probe
                client.send(FOR_ANOTHER[half:])
            await client.greet()
            assert (await client.deliver()).code == 250
            assert server.gate.count == 1
            assert handler.sessions[0].peer[0] == "192.0.2.7"


async def test_a_header_that_names_a_client_is_refused_from_an_untrusted_proxy() -> None:
    async with proxied(proxy_trust="192.0.2.1") as server:
        async with await probe(server) as client:
            client.send(FOR_ANOTHER)
            assert (await client.reply()).code == 421
        assert server.gate.stats()["refused_proxy_trust"] == 1


async def test_mail_commands_without_a_header_get_421() -> None:
    async with proxied() as server:
        async with await probe(server) as client:
            client.send("MAIL FROM:<a@example.com>\r\n")
            assert (await client.reply()).code == 220
            assert (await client.reply()).code == 421
            await ended(client)


async def test_clients_of_a_proxy_are_admitted_when_there_are_too_many_probes() -> None:
    async with proxied() as server, AsyncExitStack() as stack:
        for _ in range(MAX_PROBES):
            client = await stack.enter_async_context(await probe(server))
            client.send(LOCAL_V2)
            assert (await client.reply()).code == 220
        async with await probe(server) as client:
            client.send(FOR_ANOTHER)
            await client.greet()
            assert server.gate.count == 1


async def test_a_reset_ends_a_probe() -> None:
    async with probed() as server:
        probes = running(server).probes
        sock = await asyncio.to_thread(connect, server.addresses[0], source=PROBE)
        await until(lambda: len(probes) == 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
        await until(lambda: not len(probes))


@pytest.mark.parametrize("check", ["check-send-proxy", "no-check-send-proxy"])
async def test_checks_of_haproxy_use_no_slot(
    check: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """haproxy checks the port of its clients with LOCAL, or without a header."""
    handler = Notes()
    options: dict[str, Any] = {
        "listen": ["smtp+proxy:127.0.0.1:0"],
        "proxy_trust": "127.0.0.1",
        "probe_from": "127.0.0.1",
    }
    checks = f"check inter 100ms {check}"
    async with (
        serve(handler, **options) as server,
        haproxy(tmp_path, server.port, "send-proxy-v2", checks) as port,
    ):
        probes = running(server).probes
        begun = 0
        begin = probes.begin

        def counting(*args: Any) -> None:
            nonlocal begun
            begun += 1
            begin(*args)

        monkeypatch.setattr(probes, "begin", counting)
        await until(lambda: begun > 3)
        assert (
            server.gate.stats()["admitted"] <= 1
        )  # haproxy() skips the test if haproxy is not installed
        async with await Client.to(("127.0.0.1", port), source="127.0.0.7") as client:
            await client.greet()
            assert (await client.deliver()).code == 250
        assert [session.peer[0] for session in handler.sessions] == ["127.0.0.7"]


def test_a_daemon_answers_probes(tmp_path: Path) -> None:
    with Daemon(*LOCAL, "--probe-from", PROBE, cwd=tmp_path) as daemon:
        with connect(("127.0.0.1", daemon.port), source=PROBE) as sock:
            assert sock.recv(4) == b"220 "
            sock.sendall(b"QUIT\r\n")
        assert daemon.stop() == 0
        logged = [line.partition(" INFO ")[2] for line in daemon.log.splitlines()]
        assert "stopping: 0 sessions open, 0 waiting clients refused" in logged
        assert not any(PROBE in line for line in daemon.lines)
