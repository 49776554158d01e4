"""Forged Authentication-Results with this server's name never reach a filter or a sink."""

from __future__ import annotations

import logging
import smtplib
from typing import TYPE_CHECKING, Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import MISSING
from blockbuster import BlockBuster
from support.client import Client
from support.handlers import Collect
from support.ports import free_port
from support.server import serve

from smtpd_fork.filters import Filter
from smtpd_fork.handlers import Chain
from smtpd_fork.message import prepend
from smtpd_fork.observe.metrics import METRICS
from smtpd_fork.sinks import Discard, Sink

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from smtpd_fork.message import Mail

FORGED = "Authentication-Results: mx.example.com; dkim=pass\r\n"
OTHERS = "Authentication-Results: mx.example.org; dkim=pass\r\n"
PLAIN = "Subject: x\r\n\r\nhello\r\n"


class Adds(Filter):
    """Stores messages, and adds a field with the name of this server."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> Any:
        self.seen.append(envelope.original_content)
        prepend(envelope, "Authentication-Results", "mx.example.com; spf=fail")
        return MISSING


async def send(client: Client, text: str) -> int:
    await client.say("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>", "DATA")
    client.send(f"{text}.\r\n")
    return (await client.reply()).code


async def sent(text: str, *handlers: Any, **options: Any) -> bytes:
    """Send a message through handlers; return the stored message."""
    kept = Collect()
    async with (
        serve([*handlers, kept], **options) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.greet()
        assert await send(client, text) == 250
    (content,) = kept.messages
    assert content == kept.envelopes[0].original_content
    return bytes(content)


async def test_a_forged_field_is_removed_before_the_first_filter_and_those_of_filters_stay() -> (
    None
):
    first, second = Adds(), Adds()
    stored = await sent(FORGED + OTHERS + PLAIN, first, second)
    assert first.seen == [(OTHERS + PLAIN).encode()]
    added = b"Authentication-Results: mx.example.com; spf=fail\r\n"
    assert second.seen == [added + first.seen[0]]
    assert stored == added * 2 + first.seen[0]


async def test_a_forged_field_is_removed_without_filters() -> None:
    assert await sent(FORGED + PLAIN) == PLAIN.encode()
    assert await sent(OTHERS + PLAIN) == (OTHERS + PLAIN).encode()


async def test_this_server_may_have_other_names() -> None:
    other = FORGED.replace("mx.example.com", "Example.COM")
    assert await sent(other + PLAIN) == (other + PLAIN).encode()
    both = {"authserv_id": ["example.com", "example.net"]}
    assert await sent(other + FORGED + OTHERS + PLAIN, **both) == (OTHERS + PLAIN).encode()


async def test_a_log_line_names_the_client(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "smtpd_fork.handlers")
    await sent(OTHERS + PLAIN)
    assert caplog.messages == []
    await sent(FORGED + PLAIN)
    (line,) = caplog.messages
    assert "127.0.0.1:" in line
    assert line.endswith(": Authentication-Results removed, which named this server")


async def test_messages_with_forged_fields_are_counted() -> None:
    async with serve(Collect()) as server, await Client.to(server.addresses[0]) as client:
        await client.greet()
        for text in (FORGED + PLAIN, OTHERS + PLAIN, FORGED + FORGED + PLAIN):
            assert await send(client, text) == 250
    (value,) = [row.value for row in METRICS if "authentication_results" in row.name]
    assert value is not None
    assert value(None, server.tally) == 2  # type: ignore[arg-type] # no snapshot is needed


async def test_an_exempt_client_is_trusted() -> None:
    stored = await sent(FORGED + PLAIN, exempt=["127.0.0.1"])
    assert stored == (FORGED + PLAIN).encode()
    assert await sent(FORGED + PLAIN, exempt=["192.0.2.0/24"]) == PLAIN.encode()


async def test_a_client_that_an_exempt_host_names_is_trusted_only_if_it_is_exempt_itself() -> None:
    for named, stored in (("192.0.2.9", FORGED + PLAIN), ("203.0.113.5", PLAIN)):
        kept = Collect()
        options = {"exempt": ["127.0.0.1", "192.0.2.0/24"], "xclient_trust": ["127.0.0.1"]}
        async with (
            serve(kept, **options) as server,
            await Client.to(server.addresses[0]) as client,
        ):
            await client.greet()
            assert (await client.say(f"XCLIENT ADDR={named}")).code == 220
            await client.say("EHLO client.example")
            assert await send(client, FORGED + PLAIN) == 250
        assert kept.messages == [stored.encode()]


async def test_a_client_of_a_unix_socket_is_trusted(tmp_path: Path) -> None:
    kept = Collect()
    async with (
        serve(kept, listen=[f"unix:{tmp_path}/s"]),
        await Client.to(str(tmp_path / "s")) as client,
    ):
        await client.greet()
        assert await send(client, FORGED + PLAIN) == 250
    assert kept.messages == [(FORGED + PLAIN).encode()]


async def test_the_key_of_a_message_is_that_of_what_the_client_sent() -> None:
    keys = []

    class Keys(Sink):
        async def deliver(self, mail: Mail) -> str:
            keys.append((mail.key, mail.content))
            return "250 2.0.0 Ok"

    async with serve(Keys()) as server, await Client.to(server.addresses[0]) as client:
        await client.greet()
        for text in (FORGED + PLAIN, FORGED + PLAIN, PLAIN):
            await send(client, text)
    assert keys[0] == keys[1]
    assert keys[0][1] == keys[2][1] == PLAIN.encode()
    assert keys[0][0] != keys[2][0]


async def test_a_large_header_does_not_block_the_loop() -> None:
    filler = "".join(f"X-{number}: y\r\n" for number in range(100_000))
    blockbuster = BlockBuster()
    blockbuster.activate()
    try:
        assert await sent(filler + FORGED + PLAIN) == (filler + PLAIN).encode()
        assert await sent(filler + PLAIN) == (filler + PLAIN).encode()
    finally:
        blockbuster.deactivate()


async def test_a_hook_that_needs_no_task_still_needs_none() -> None:
    hook = Chain([Discard()]).handle_DATA  # type: ignore[attr-defined] # set by name
    assert hook.may_end_at_once


def test_forged_fields_are_removed_under_aiosmtpd() -> None:
    seen = Adds()
    chain = Chain([seen, Discard()])
    port = free_port("127.0.0.1")
    controller = Controller(chain, "127.0.0.1", port, server_hostname="mx.example.com")
    controller.start()
    try:
        with smtplib.SMTP("127.0.0.1", port) as client:
            client.sendmail("a@example.org", ["b@example.com"], FORGED + PLAIN)
    finally:
        controller.stop()
    assert seen.seen == [PLAIN.encode()]
