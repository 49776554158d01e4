"""TLS by listener: listeners that require it, and listeners that do not offer it."""

from __future__ import annotations

import smtplib
import ssl
from typing import TYPE_CHECKING, Any

import pytest
from support.client import MAIL, Client
from support.daemon import Daemon
from support.dialogue import ehlo
from support.server import greeted, serve

from smtpd_fork.sinks import Discard

if TYPE_CHECKING:
    from pathlib import Path

    from support.tls import Certificates

PROXY = b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 25\r\n"


async def test_each_listener_has_its_own_rule(certificates: Certificates) -> None:
    listen = [
        "127.0.0.1:0",
        "smtp+require-tls:127.0.0.1:0",
        "smtp+no-tls:127.0.0.1:0",
        "smtps+require-tls:127.0.0.1:0",
    ]
    async with serve(Discard(), listen=listen, tls_context=certificates.server) as server:
        for _ in range(
            2
        ):  # the first session of a listener is created in another way than further ones
            for address, offered, code in zip(
                server.addresses[:3], [True, True, False], [250, 530, 250], strict=True
            ):
                async with await Client.to(address) as client:
                    assert ("STARTTLS" in (await client.greet()).lines) == offered
                    reply = await client.say(MAIL)
                    assert reply.code == code
                    if code == 530:
                        assert reply.text == "5.7.0 Must issue a STARTTLS command first"
            async with await Client.to(server.addresses[3], tls=certificates.client) as client:
                assert "STARTTLS" not in (await client.greet()).lines
                assert (await client.say(MAIL)).code == 250


async def test_mail_is_delivered_over_required_tls(certificates: Certificates) -> None:
    listen = ["lmtp+require-tls:127.0.0.1:0", "smtp+require-tls:127.0.0.1:0"]
    async with serve(Discard(), listen=listen, tls_context=certificates.server) as server:
        for address, hello in zip(server.addresses, ["LHLO x", "EHLO x"], strict=True):
            async with await Client.to(address) as client:
                await client.reply()
                await client.say(hello)
                assert (await client.say(MAIL)).code == 530
                await client.start_tls(certificates.client)
                await client.say(hello)
                assert (await client.deliver()).code == 250


async def test_starttls_is_refused_if_it_is_not_offered(certificates: Certificates) -> None:
    options: dict[str, Any] = {"listen": ["smtp+no-tls:127.0.0.1:0"]}
    async with greeted(Discard(), tls_context=certificates.server, **options) as client:
        assert (await client.say("STARTTLS")).code == 454
        assert (await client.deliver()).code == 250


async def test_require_starttls_does_not_apply_to_a_listener_without_tls(
    certificates: Certificates,
) -> None:
    options: dict[str, Any] = {"listen": ["127.0.0.1:0", "smtp+no-tls:127.0.0.1:0"]}
    options["require_starttls"] = True
    async with serve(Discard(), tls_context=certificates.server, **options) as server:
        for address, code in zip(server.addresses, [530, 250], strict=True):
            async with await Client.to(address) as client:
                await client.greet()
                assert (await client.say(MAIL)).code == code


@pytest.mark.parametrize("flags", ["+proxy+require-tls", "+require-tls+proxy"])
async def test_behind_a_proxy_tls_may_be_required(certificates: Certificates, flags: str) -> None:
    options: dict[str, Any] = {"listen": [f"smtp{flags}:127.0.0.1:0"], "proxy_trust": "127.0.0.1"}
    async with (
        serve(Discard(), tls_context=certificates.server, **options) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        client.send(PROXY)
        await client.greet()
        assert (await client.say(MAIL)).code == 530
        await client.start_tls(certificates.client)
        await client.say("EHLO x")
        assert (await client.deliver()).code == 250


def test_the_daemon_logs_the_flags_of_its_listeners(
    tmp_path: Path, certificates: Certificates
) -> None:
    options = (
        *("-l", "smtp+require-tls+proxy:127.0.0.1:0", "-l", "smtp+no-tls:127.0.0.1:0"),
        *("-l", "smtp+require-tls:127.0.0.1:0", "--proxy-trust", "127.0.0.1"),
        *("--tls-cert", str(certificates.cert), "--tls-key", str(certificates.key)),
    )
    with Daemon(*options, "--handler", "discard", cwd=tmp_path) as daemon:
        schemes = [place.partition(":")[0] for place in daemon.places]
        assert schemes == ["smtp+proxy+require-tls", "smtp+no-tls", "smtp+require-tls"]
        ports = [int(place.rpartition(":")[2]) for place in daemon.places]
        with smtplib.SMTP("127.0.0.1", ports[1]) as client:
            assert "starttls" not in ehlo(client)
        with smtplib.SMTP("127.0.0.1", ports[2]) as client:
            assert "starttls" in ehlo(client)
            assert client.mail("a@example.com")[0] == 530
            client.starttls(context=certificates.client)
            assert isinstance(client.sock, ssl.SSLSocket)
            client.ehlo()
            assert client.mail("a@example.com")[0] == 250
