"""TLS: by STARTTLS (RFC 3207), and implicit TLS."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from support.client import Client
from support.handlers import Collect
from support.server import greeted, serve, until

from smtpd_fork.sinks import Discard

if TYPE_CHECKING:
    from support.tls import Certificates


async def test_mail_is_delivered_over_starttls(certificates: Certificates) -> None:
    seen: list[Any] = []

    class Look(Collect):
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
            seen.append((session.ssl["cipher"], session.peer[0], session.host_name))
            return "250 ok"

    async with (
        serve(Look(), tls_context=certificates.server) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        assert "STARTTLS" in (await client.greet()).lines
        await client.start_tls(certificates.client)
        assert (
            await client.say("MAIL FROM:<a@b.c>")
        ).code == 503  # EHLO again, as RFC 3207 requires
        assert "STARTTLS" not in (await client.say("EHLO again")).lines
        assert (await client.deliver()).code == 250
        assert await client.say("QUIT") == (221, ["2.0.0 Bye"])
    ((cipher, host, name),) = seen
    assert cipher[1].startswith("TLS")
    assert (host, name) == ("127.0.0.1", "again")


async def test_a_second_starttls_is_503(certificates: Certificates) -> None:
    async with greeted(Discard(), tls_context=certificates.server) as client:
        await client.start_tls(certificates.client)
        await client.say("EHLO x")
        assert (await client.say("STARTTLS")).code == 503


async def test_required_starttls_refuses_mail_in_plaintext(certificates: Certificates) -> None:
    async with greeted(Discard(), tls_context=certificates.server, require_starttls=True) as client:
        assert (await client.say("MAIL FROM:<a@b.c>")).code == 530


@pytest.mark.parametrize("how", ["stall", "garbage", "reset", "eof", "close after 220"])
async def test_a_failed_starttls_handshake_frees_the_slot(
    how: str, certificates: Certificates
) -> None:
    """aiosmtpd itself is not notified of the end of a handshake that hangs."""
    options = {"tls_context": certificates.server, "tls_handshake_timeout": 0.2, "timeout": 0.2}
    async with serve(Discard(), **options) as server:
        client = await Client.to(server.addresses[0])
        await client.greet()
        client.send("STARTTLS\r\n")
        await client.reply()
        if how == "garbage":
            client.send(b"this is no ClientHello\r\n" * 10)
        elif how == "reset":
            client.reset()
        elif how == "eof":
            client.writer.write_eof()
        elif how == "close after 220":
            await client.close()
        await until(lambda: not server.gate.count)
        await client.close()


async def test_mail_is_delivered_over_implicit_tls(certificates: Certificates) -> None:
    options = {"listen": ["smtps:127.0.0.1:0"], "tls_context": certificates.server}
    async with (
        serve(Discard(), **options) as server,
        await Client.to(server.addresses[0], tls=certificates.client) as client,
    ):
        offered = await client.greet()
        assert "STARTTLS" not in offered.lines
        assert (await client.deliver()).code == 250


async def test_an_idle_connection_to_the_tls_port_is_counted_and_cut(
    certificates: Certificates,
) -> None:
    options = {
        "listen": ["smtps:127.0.0.1:0"],
        "tls_context": certificates.server,
        "tls_handshake_timeout": 0.3,
    }
    async with serve(Discard(), **options) as server:
        client = await Client.to(server.addresses[0])
        await until(lambda: server.gate.count)
        assert server.sessions == 1
        assert await client.ended()
        await until(lambda: not server.gate.count)
        await client.close()
