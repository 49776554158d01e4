"""Behind haproxy: PROXY v1 and v2, TLS behind it, and its health checks."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from support.client import Client
from support.handlers import Notes
from support.haproxy import haproxy
from support.server import serve, until

from smtpd_fork.sinks import Discard

if TYPE_CHECKING:
    from pathlib import Path

    from support.tls import Certificates


@pytest.mark.parametrize("send", ["send-proxy", "send-proxy-v2"])
async def test_the_address_of_the_client_is_that_in_the_header(send: str, tmp_path: Path) -> None:
    handler = Notes()
    options = {"listen": ["smtp+proxy:127.0.0.1:0"], "proxy_trust": "127.0.0.1", "max_from_ip": 1}
    async with (
        serve(handler, **options) as server,
        haproxy(tmp_path, server.port, send) as port,
    ):
        async with (
            await Client.to(("127.0.0.1", port), source="127.0.0.7") as first,
            await Client.to(("127.0.0.1", port), source="127.0.0.8") as second,
        ):
            assert (await first.greet()).code == 250
            assert (await first.deliver()).code == 250
            assert (await second.greet()).code == 250
            assert [session.peer[0] for session in handler.sessions] == ["127.0.0.7", "127.0.0.8"]
            version = 2 if send.endswith("v2") else 1
            assert {session.proxy_data.version for session in handler.sessions} == {version}
            async with await Client.to(("127.0.0.1", port), source="127.0.0.7") as third:
                assert "from 127.0.0.7, try" in (await third.reply()).text
        await until(lambda: not server.gate.count)


async def test_tls_works_after_the_header(tmp_path: Path, certificates: Certificates) -> None:
    handler = Notes()
    options = {
        "listen": ["smtps+proxy:127.0.0.1:0"], "proxy_trust": "127.0.0.1",
        "tls_context": certificates.server,
    }  # fmt: skip
    async with (
        serve(handler, **options) as server,
        haproxy(tmp_path, server.port, "send-proxy-v2") as port,
        await Client.to(("127.0.0.1", port), source="127.0.0.7", tls=certificates.client) as client,
    ):
        assert (await client.greet()).code == 250
        assert (await client.deliver()).code == 250
        (session,) = handler.sessions
        assert session.peer[0] == "127.0.0.7"
        assert session.ssl["cipher"]


@pytest.mark.parametrize(
    "send",
    [
        "send-proxy",
        "send-proxy-v2",
        # LOCAL with TLVs: a block that is shorter than the addresses of any family.
        "send-proxy-v2 proxy-v2-options unique-id,crc32c",
    ],
)
async def test_health_checks_are_answered_and_not_counted_for_a_client(
    send: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    options = {"listen": ["smtp+proxy:127.0.0.1:0"], "proxy_trust": "127.0.0.1", "max_from_ip": 1}
    check = "check check-send-proxy inter 50ms"
    async with (
        serve(Discard(), **options) as server,
        haproxy(tmp_path, server.port, send, check) as port,
    ):
        async with await Client.to(("127.0.0.1", port), source="127.0.0.7") as client:
            assert (await client.greet()).code == 250
            await until(lambda: server.gate.stats()["admitted"] >= 8)
            assert server.gate.clients == {"127.0.0.7": 1}
            assert (await client.deliver()).code == 250
        assert server.gate.stats()["refused"] == 0
    assert not re.search(r"(?i)traceback|exception|no PROXY header", caplog.text)


@pytest.mark.parametrize("send", ["send-proxy", "send-proxy-v2"])
async def test_an_early_talker_is_refused_and_health_checks_do_not_wait(
    send: str, tmp_path: Path
) -> None:
    options = {"listen": ["smtp+proxy:127.0.0.1:0"], "proxy_trust": "127.0.0.1"}
    pause = {"greet_pause": 0.3, "greet_pause_deny": 60}
    check = "check check-send-proxy inter 50ms"
    async with (
        serve(Discard(), **options, **pause) as server,
        haproxy(tmp_path, server.port, send, check) as port,
    ):
        async with (
            await Client.to(("127.0.0.1", port), source="127.0.0.7") as early,
            await Client.to(("127.0.0.1", port), source="127.0.0.8") as patient,
        ):
            early.send("EHLO x\r\nMAIL FROM:<a@example.com>\r\n")
            assert (await early.reply()).code == 554
            assert (await patient.greet()).code == 250
            admitted = server.gate.stats()["admitted"]
            await until(lambda: server.gate.stats()["admitted"] >= admitted + 3)
        assert server.gate.stats()["refused_greet_pause"] == server.gate.stats()["refused"] == 1
