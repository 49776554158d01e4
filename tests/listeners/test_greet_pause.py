"""The greet pause: clients that send data before the greeting are refused."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from support.client import Client, Reply
from support.daemon import LOCAL, Daemon
from support.dialogue import connect
from support.proxy import V1
from support.server import serve, until

from smtpd_fork import Config, SettingError
from smtpd_fork.sinks import Discard

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from support.tls import Certificates

    from smtpd_fork import Server

PROXIED: dict[str, Any] = {"listen": ["smtp+proxy:127.0.0.1:0"], "proxy_trust": ["127.0.0.1"]}

V1_6 = b"PROXY TCP6 2001:db8::7 2001:db8::1 1 25\r\n"


async def first_reply(server: Server, data: bytes, **options: Any) -> Reply:
    """Send *data* before the greeting; return the first reply."""
    async with await Client.to(server.addresses[0], **options) as client:
        client.send(data)
        reply = await client.reply()
        assert reply.code == 220 or await client.ended()
        return reply


def denied(server: Server) -> list[str]:
    return [denial.written for denial, _ in server.gate.denials.page()]


async def test_a_client_that_waits_for_the_greeting_is_served() -> None:
    async with serve(Discard(), greet_pause=0.2) as server:
        begun = asyncio.get_running_loop().time()
        async with await Client.to(server.addresses[0]) as client:
            assert (await client.greet()).code == 250
            assert asyncio.get_running_loop().time() - begun >= 0.2
            assert (await client.deliver()).code == 250


async def test_an_early_talker_gets_554_and_frees_its_slot() -> None:
    async with serve(Discard(), greet_pause=60) as server:
        async with await Client.to(server.addresses[0]) as client:
            client.send("EHLO spammer\r\n")
            code, (text,) = await client.reply()
            assert (code, text[:5]) == (554, "5.5.1")
            assert await client.ended()
        explained = server.gate.explain(text.rpartition("[")[2].rstrip("]"))
        assert explained is not None
        assert explained.refusal.rule == "greet_pause"
        assert "--greet-pause" in explained.cure
        assert server.gate.count == 0
        assert server.gate.stats()["refused_greet_pause"] == 1


@pytest.mark.parametrize("end", ["close", "reset", "half-close"])
async def test_a_client_that_disconnects_before_the_greeting_frees_its_slot(end: str) -> None:
    async with serve(Discard(), greet_pause=60) as server:
        client = await Client.to(server.addresses[0])
        await until(lambda: server.gate.count == 1)
        assert [entry.phase for entry in server.gate.ledger()] == ["greet-pause"]
        assert server.sessions == 0
        if end == "reset":
            client.reset()
        elif end == "half-close":
            client.writer.write_eof()
        else:
            await client.close()
        await until(lambda: not server.gate.count)
        await client.close()


async def test_exempt_clients_and_those_of_a_tls_port_do_not_wait(
    certificates: Certificates,
) -> None:
    listen = ["127.0.0.1:0", "smtps:127.0.0.1:0"]
    options = {"listen": listen, "tls_context": certificates.server, "exempt": "127.0.0.9"}
    async with serve(Discard(), greet_pause=60, **options) as server:
        async with await Client.to(server.addresses[0], source="127.0.0.9") as relay:
            assert (await relay.greet()).code == 250
        async with await Client.to(server.addresses[1], tls=certificates.client) as encrypted:
            assert (await encrypted.greet()).code == 250


async def test_a_stop_answers_421_to_clients_that_wait_for_the_greeting() -> None:
    async with serve(Discard(), greet_pause=60) as server:
        clients = [await Client.to(server.addresses[0]) for _ in range(3)]
        await until(lambda: server.gate.count == 3)
        await server.stop()
        for client in clients:
            assert (await client.reply()).code == 421
            assert await client.ended()
            await client.close()


async def test_thousands_of_early_talkers_and_disconnects_leave_nothing_behind() -> None:
    async def talker(number: int) -> None:
        client = await Client.to(server.addresses[0], source=f"127.0.1.{number % 250 + 1}")
        if number % 2:
            client.send("HELO x\r\n")
            assert (await client.reply()).code == 554
        await client.close()

    async with serve(Discard(), greet_pause=60, limit_connections=3000, backlog=4096) as server:
        for start in range(0, 2000, 200):
            await asyncio.gather(*(talker(start + number) for number in range(200)))
        await until(lambda: not server.gate.count)


@pytest.mark.parametrize(
    ("header", "key", "other"),
    [
        (V1, "192.0.2.1", V1.replace(b"192.0.2.1 ", b"192.0.2.3 ")),
        (V1_6, "2001:db8::/64", V1_6.replace(b"db8::7", b"db8:0:1::7")),
    ],
    ids=["IPv4", "IPv6"],
)
async def test_an_early_talker_behind_a_proxy_is_denied_and_its_neighbours_are_not(
    header: bytes, key: str, other: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    options = {**PROXIED, "greet_pause": 0.2, "greet_pause_deny": "1h"}
    async with serve(Discard(), **options) as server:
        early = await first_reply(server, header + b"EHLO spammer\r\nMAIL FROM:<>\r\n")
        assert (early.code, early.text[:5]) == (554, "5.5.1")
        ((denial, left),) = server.gate.denials.page()
        assert (denial.written, denial.by) == (key, "greet_pause")
        assert 3500 < left <= 3600
        later = await first_reply(server, header)
        assert later.text.startswith("5.7.1 mx.example.com Sent data before the greeting [")
        explained = server.gate.explain(later.text.rpartition("[")[2].rstrip("]"))
        assert explained is not None
        assert "denied at run time by greet_pause at 20" in explained.refusal.origin
        assert explained.cure == f"smtpd-fork undeny {key}"
        assert (await first_reply(server, other)).code == 220
        reason = f"refused {key}: greet_pause, sent EHLO before the greeting, denied for 3600 s"
        assert reason in caplog.text
        assert "spammer" not in caplog.text


async def test_local_and_allowed_early_talkers_are_refused_and_not_denied(
    caplog: pytest.LogCaptureFixture,
) -> None:
    listen = ["127.0.0.1:0", *PROXIED["listen"]]
    options = {**PROXIED, "listen": listen, "allow": "192.0.2.0/24", "greet_pause": 60}
    async with serve(Discard(), **options, greet_pause_deny=60) as server:
        assert (await first_reply(server, b"\x16\x03\x01")).code == 554
        async with await Client.to(server.addresses[1]) as client:
            client.send(V1 + b"AUTH PLAIN AHgAeA==\r\n")
            assert (await client.reply()).code == 554
        assert denied(server) == []
        assert "sent data before the greeting, not denied as its network is local" in caplog.text
        assert "sent AUTH before the greeting, not denied as it is allowed" in caplog.text
        assert "AHgAeA" not in caplog.text


async def test_a_client_is_refused_even_if_no_more_denials_are_possible(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("smtpd_fork.gate.denials.MAX_AUTOMATIC", 1)
    options = {**PROXIED, "greet_pause": 60, "greet_pause_deny": 60}
    async with serve(Discard(), **options) as server:
        assert (await first_reply(server, V1 + b"EHLO x\r\n")).code == 554
        assert (await first_reply(server, V1_6 + b"EHLO x\r\n")).code == 554
        assert denied(server) == ["192.0.2.1"]
        assert "not denied: 1 networks are denied at run time" in caplog.text


@pytest.mark.parametrize(
    ("listen", "header"),
    [
        ("lmtp:127.0.0.1:0", b""),
        ("smtp+proxy:127.0.0.1:0", b"PROXY UNKNOWN\r\n"),
        ("smtp+proxy:127.0.0.1:0", b"PROXY TCP4 127.0.0.1 127.0.0.1 1 25\r\n"),
        ("unix:{}/sock", b""),
    ],
    ids=["LMTP", "no client is named", "health check of a proxy", "unix socket"],
)
async def test_clients_that_a_denial_does_not_concern_do_not_wait(
    listen: str, header: bytes, tmp_path: Path
) -> None:
    options = {**PROXIED, "listen": [listen.format(tmp_path)]}
    async with serve(Discard(), greet_pause=60, greet_pause_deny=60, **options) as server:
        assert (await first_reply(server, header + b"NOOP\r\n")).code == 220
        assert denied(server) == []


async def test_the_pause_is_shorter_while_few_slots_are_free() -> None:
    options = {"limit_connections": 4, "greet_pause": 240, "stress_timeout": 0.2}
    async with serve(Discard(), **options, max_from_ip=0) as server:
        clients = [await Client.to(server.addresses[0]) for _ in range(2)]
        await until(lambda: server.gate.count == 2)
        assert {entry.phase for entry in server.gate.ledger()} == {"greet-pause"}
        clients.append(await Client.to(server.addresses[0]))
        for client in clients:  # also those that came before
            assert (await client.reply()).code == 220
            await client.close()
        await until(lambda: not server.gate.count)
        async with await Client.to(server.addresses[0]):
            await until(lambda: server.gate.count == 1)
            await asyncio.sleep(0.3)
            assert [entry.phase for entry in server.gate.ledger()] == ["greet-pause"]


async def test_early_talkers_are_denied_after_a_reload() -> None:
    async with serve(Discard(), **PROXIED, greet_pause=60) as server:
        assert (await first_reply(server, V1_6 + b"EHLO x\r\n")).code == 554
        deny = {"greet_pause": 60, "greet_pause_deny": "1h"}
        await server.reload(Config.build({**PROXIED, **deny}))
        assert (await first_reply(server, V1 + b"EHLO x\r\n")).code == 554
        assert denied(server) == ["192.0.2.1"]


def test_denying_early_talkers_requires_a_greet_pause() -> None:
    with pytest.raises(SettingError, match=r"greet_pause_deny.*needs greet_pause"):
        Config.build({"greet_pause_deny": "1h"})


def test_the_option_accepts_units_up_to_a_limit(tmp_path: Path) -> None:
    with Daemon(*LOCAL, "--greet-pause", "50ms", cwd=tmp_path) as daemon:
        with connect(("127.0.0.1", daemon.port)) as client:
            assert client.recv(4) == b"220 "
