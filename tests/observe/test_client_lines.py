"""Every line about a client has its address, the session's id if there is one, and a reason."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

import pytest
from support.client import MAIL, RCPT, Client
from support.handlers import check_password
from support.nameserver import name_server
from support.server import serve, until

from smtpd_fork.observe.logs.fields import fields_of, message_of
from smtpd_fork.sinks import Discard

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from support.tls import Certificates

    Drive = Callable[[Client], Awaitable[object]]

CLIENT = "127.0.0.7"


class Fails(Discard):
    async def handle_RCPT(self, *args: Any) -> str:
        raise ValueError("no table")


class FailsAtOnce(Discard):
    async def handle_CONNECT(self, *args: Any) -> str:
        raise ValueError("no table")


class RefusesHeader(Discard):
    async def handle_PROXY(self, *args: Any) -> bool:
        return False


async def connected(client: Client) -> None:
    await client.reply()


async def failed_auth(client: Client) -> None:
    await client.greet()
    assert (await client.say("AUTH PLAIN AGEAYg==")).code == 535


async def recipient(client: Client) -> None:
    await client.greet()
    await client.say(MAIL)
    await client.say(RCPT)


async def large(client: Client) -> None:
    await client.greet()
    assert (await client.deliver("x" * 5000 + "\r\n")).code == 552


async def no_handshake(client: Client) -> None:
    await client.greet()
    await client.say("STARTTLS")
    client.send("this is no handshake\r\n" * 10)
    await client.ended()


async def header(client: Client) -> None:
    client.send("PROXY TCP4 127.0.0.7 127.0.0.1 1 2\r\n")
    await client.reply()


async def wrong_header(client: Client) -> None:
    client.send("EHLO client.example\r\n")
    await client.ended()


async def silent(client: Client) -> None:
    while (await client.reply()).code not in {0, 421}:
        pass


async def sends_http(client: Client) -> None:
    await client.reply()
    client.send("GET / HTTP/1.1\r\n\r\n")
    await client.reply()


PROXIED: dict[str, Any] = {"listen": ["smtp+proxy:127.0.0.1:0"], "proxy_trust": ["127.0.0.0/8"]}
AUTH = {"authenticator": check_password, "auth_require_tls": False}

KINDS: dict[str, tuple[Drive, str, dict[str, Any]]] = {
    "denied": (connected, "deny", {"deny": ["127.0.0.0/29"]}),
    "connection limit": (
        connected,
        "connection limit reached",
        {"when_full": "refuse", "fill": True},
    ),
    "connections of a network": (
        connected,
        "max_from_net",
        {"max_from_net": ["1/24"], "max_from_ip": 9, "fill": True},
    ),
    "rate": (connected, "rate", {"rate": "1/h", "twice": True}),
    "talks before the greeting": (sends_http, "greet_pause", {"greet_pause": 0.3, "early": True}),
    "listed": (connected, r"listed by a\.example", {"dnsbl": "a.example"}),
    "untrusted proxy": (header, "proxy_trust", {**PROXIED, "proxy_trust": ["192.0.2.1"]}),
    "no header": (wrong_header, "no PROXY header", PROXIED),
    "silent proxy": (silent, "no PROXY header", {**PROXIED, "proxy_timeout": 0.1}),
    "a header that a handler refuses": (
        header,
        "PROXY header refused: by handle_PROXY",
        {**PROXIED, "handler": RefusesHeader()},
    ),
    "a header on another listener": (header, "without [+]proxy", {}),
    "HTTP": (sends_http, "HTTP request", {}),
    "failed AUTH": (failed_auth, "rejected AUTH", {"session_options": AUTH}),
    "a handler that fails": (recipient, "failed.*ValueError: no table", {"handler": Fails()}),
    "a handler that fails at once": (
        connected,
        "handle_CONNECT failed: ValueError: no table",
        {"handler": FailsAtOnce()},
    ),
    "a large message": (large, "rejected DATA", {"max_message_size": 1000}),
    "a timeout": (silent, "timeout", {"timeout": 0.1}),
    "a failed handshake": (no_handshake, "TLS handshake failed", {"tls": True}),
}


@pytest.mark.filterwarnings("ignore:Requiring AUTH")
@pytest.mark.parametrize("kind", KINDS)
async def test_every_line_about_a_client_has_its_address_its_session_and_a_reason(
    kind: str, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    drive, text, given = KINDS[kind]
    options = dict(given)
    fill, twice, early = (options.pop(name, False) for name in ("fill", "twice", "early"))
    if options.pop("tls", False):
        options["tls_context"] = certificates.server
    if fill and "max_from_net" not in options:
        options["limit_connections"] = 1
    caplog.set_level(logging.DEBUG, logger="smtpd_fork")
    async with name_server() as names:
        if "dnsbl" in options:
            options["dns_server"] = names.address
            names.records["7.0.0.127.a.example", "A"] = "127.0.0.2"
        async with serve(options.pop("handler", Discard()), **options) as server:
            before = [await Client.to(server.addresses[0], source="127.0.0.9")] if fill else []
            for client in before:
                await client.greet()
            for _ in range(1 + twice):
                async with await Client.to(server.addresses[0], source=CLIENT) as client:
                    if early:
                        client.send("GET / HTTP/1.1\r\n\r\n")
                    await drive(client)
            await until(lambda: re.search(text, caplog.text))
            for client in before:
                await client.close()
    records = [each for each in caplog.records if is_about_a_client(each)]
    assert any(re.search(text, message_of(each)) for each in records)
    for each in records:
        check(each)


def is_about_a_client(record: logging.LogRecord) -> bool:
    """Whether the text of a record is about a client; its fields are checked separately."""
    text = message_of(record)
    about = re.search(r"127\.0\.0\.[79]\b|^\[|refused|rejected", text) is not None
    return about and not text.startswith(("stopping:", "draining:"))


def check(record: logging.LogRecord) -> None:
    line, fields = message_of(record), fields_of(record)
    host, port = fields["client"].split(":")
    assert host in {CLIENT, "127.0.0.9"}, fields
    assert port.isdigit(), fields
    assert host in line, line
    if "session" in fields:
        assert fields["session"] in line, (fields, line)
    else:
        assert re.search("refused|no PROXY header", line), f"has no session: {line}"
    if record.levelno > logging.DEBUG and "queued" not in line:
        assert fields["reason"], fields
        if (
            "refused" in line and fields.get("rule") != "limit_connections"
        ):  # its reason has a longer text
            assert fields["reason"] in line
