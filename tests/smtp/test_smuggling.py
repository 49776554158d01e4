"""Smuggling: only CR LF . CR LF ends a message; --bare-newline sets the end of a command."""

from __future__ import annotations

import asyncio
import re
import smtplib
from itertools import product
from typing import Any

import pytest
from support.client import Client
from support.server import greeted, serve

from smtpd_fork.sinks import Discard

BEFORE = ["\r", "\n", "\r\n", "\0", ""]
AFTER = ["\r", "\n", "\r\n", ""]
MODES = ["reject", "normalize", "accept"]

SMUGGLED = "MAIL FROM:<evil@example.com>"

VARIANTS = [
    pytest.param(before, after, id=f"{before!r}.{after!r}")
    for before, after in product(BEFORE, AFTER)
]


class Collect:
    """Stores the messages that it gets."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, bytes]] = []
        self.senders: list[str] = []

    async def handle_MAIL(
        self, server: Any, session: Any, envelope: Any, address: str, options: list[str]
    ) -> str:
        self.senders.append(address)
        envelope.mail_from = address
        return "250 2.1.0 Ok"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.messages.append((envelope.mail_from, envelope.content))
        return "250 2.0.0 Ok"


def has_bare(text: str) -> bool:
    return "\0" in text or re.search(r"\r(?!\n)|(?<!\r)\n", text) is not None


def unstuffed(text: str) -> str:
    """Return *text* with its lines converted by RFC 5321 4.5.2."""
    return "\r\n".join(line.removeprefix(".") for line in text.split("\r\n"))


def received(text: str, mode: str) -> bytes:
    kept = unstuffed(text)
    if mode == "normalize":
        kept = re.sub(r"\r{1,3}\n|\r|\n", "\r\n", kept)
    return kept.encode()


async def hand_in(client: Client, text: str, mode: str, handler: Collect) -> None:
    """Send *text* as a message with its real end; check that it is one message, or rejected."""
    await client.greet()
    await client.say("MAIL FROM:<a@example.com>", "RCPT TO:<b@example.com>")
    assert (await client.say("DATA")).code == 354
    client.send(text + "\r\n.\r\nNOOP\r\n")
    reply = await client.reply()
    if mode == "reject" and has_bare(text + "\r\n"):
        assert (reply.code, reply.text[:6]) == (550, "5.6.11")
        assert handler.messages == []
    else:
        assert reply.code == 250
        assert handler.messages == [("a@example.com", received(text + "\r\n", mode))]
    assert await client.reply() == (250, ["2.0.0 OK"])
    assert handler.senders == ["a@example.com"]
    # The transaction has ended, and another one is accepted.
    handler.messages.clear()
    assert (await client.deliver("again\r\n")).code == 250
    assert handler.messages == [("a@example.com", b"again\r\n")]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("before", "after"), VARIANTS)
async def test_only_crlf_dot_crlf_ends_a_message(before: str, after: str, mode: str) -> None:
    handler = Collect()
    async with (
        serve(handler, bare_newline=mode) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        if (before, after) == ("\r\n", "\r\n"):
            await client.greet()
            await client.say("MAIL FROM:<a@example.com>", "RCPT TO:<b@example.com>", "DATA")
            client.send(f"one\r\n.\r\n{SMUGGLED}\r\n")
            assert [(await client.reply()).code for _ in range(2)] == [250, 250]
            assert handler.senders == ["a@example.com", "evil@example.com"]
            return
        text = (
            f"Subject: one\r\n\r\nfirst{before}.{after}"
            f"{SMUGGLED}\r\nRCPT TO:<b@example.com>\r\nDATA\r\nsecond"
        )
        await hand_in(client, text, mode, handler)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("before", "after"), VARIANTS)
async def test_only_crlf_dot_crlf_ends_a_message_at_its_start(
    before: str, after: str, mode: str
) -> None:
    handler = Collect()
    async with (
        serve(handler, bare_newline=mode) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        if before in {"", "\r\n"} and after == "\r\n":  # an empty message, or one of an empty line
            await client.greet()
            await client.say("MAIL FROM:<a@example.com>", "RCPT TO:<b@example.com>", "DATA")
            client.send(f"{before}.{after}NOOP\r\n")
            assert [(await client.reply()).code for _ in range(2)] == [250, 250]
            assert handler.messages == [("a@example.com", before.encode())]
            return
        await hand_in(client, f"{before}.{after}{SMUGGLED}", mode, handler)


@pytest.mark.parametrize("mode", MODES)
async def test_the_end_is_found_in_single_bytes(mode: str) -> None:
    handler = Collect()
    async with greeted(handler, bare_newline=mode) as client:
        await client.say("MAIL FROM:<a@example.com>", "RCPT TO:<b@example.com>", "DATA")
        for byte in b"x\r\n..\r\n.y\r\n.\r\n":
            client.send(bytes([byte]))
            await client.writer.drain()
        assert (await client.reply()).code == 250
    assert handler.messages == [("a@example.com", b"x\r\n.\r\ny\r\n")]


async def test_by_default_a_message_is_one_message_for_the_next_hop_too() -> None:
    """A handler gets the text without doubled dots, which smtplib doubles again."""
    behind = Collect()

    class Relay(Collect):
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
            await super().handle_DATA(server, session, envelope)
            return await asyncio.to_thread(pass_on, envelope.content)

    def pass_on(content: bytes) -> str:
        with smtplib.SMTP(*second.addresses[0][:2]) as relay:
            relay.sendmail("a@example.com", ["b@example.com"], content)
        return "250 2.0.0 Ok"

    before = Relay()
    async with serve(behind) as second, serve(before) as first:
        async with await Client.to(first.addresses[0]) as client:
            await client.greet()
            for variant in VARIANTS:
                text = f"first{variant.values[0]}.{variant.values[1]}{SMUGGLED}\r\nDATA\r\nx"
                if variant.values != ("\r\n", "\r\n"):
                    assert (await client.deliver(f"{text}\r\n", to="b@example.com")).code == 250
    assert len(before.messages) == len(VARIANTS) - 1
    assert behind.messages == before.messages


# -- commands --------------------------------------------------------------------------------------


@pytest.mark.parametrize("bare", ["\n", "\r", "\0", "\n\r", "\r\r"], ids=repr)
@pytest.mark.parametrize("where", ["in", "end", "begin"])
async def test_a_command_with_a_bare_byte_is_rejected(bare: str, where: str) -> None:
    handler = Collect()
    line = {
        "in": f"MAIL FROM:<a@b.c>{bare}{SMUGGLED}",
        "end": f"MAIL FROM:<a@b.c>{bare}",
        "begin": f"{bare}MAIL FROM:<a@b.c>",
    }[where]
    async with greeted(handler, bare_newline="reject") as client:
        client.send(f"{line}\r\nVRFY x@y.z\r\n")
        replies = [await client.reply()]
        while replies[-1].code == 500:
            assert replies[-1].text.startswith("5.5.2")
            replies.append(await client.reply())
        assert len(replies) > 1
        assert replies[-1].code == 252
        assert (await client.say("RCPT TO:<d@e.f>")).code == 503
    assert handler.senders == []


@pytest.mark.parametrize("cut", range(1, 7))
async def test_text_after_a_bare_lf_is_not_a_command_however_it_is_cut(cut: int) -> None:
    handler = Collect()
    data = f"NOOP\n{SMUGGLED}\r\nVRFY x@y.z\r\n".encode()
    async with greeted(handler, bare_newline="reject") as client:
        client.send(data[:cut])
        await asyncio.sleep(0.01)
        client.send(data[cut:])
        assert [(await client.reply()).code for _ in range(2)] == [500, 252]
    assert handler.senders == []


@pytest.mark.parametrize("bare", ["\r", "\0", "\r\r", "\n\r"], ids=repr)
async def test_by_default_a_command_with_cr_or_nul_is_rejected(
    bare: str,
) -> None:
    handler = Collect()
    async with greeted(handler) as client:
        client.send(f"NOOP{bare}{SMUGGLED}\r\nVRFY x@y.z\r\n")
        replies = [(await client.reply()).code for _ in range(1 + bare.count("\n"))]
        assert replies[-1] == 500
        assert (await client.reply()).code == 252
    assert handler.senders == []


@pytest.mark.parametrize("mode", ["normalize", "accept"])
async def test_a_bare_lf_ends_a_command_except_with_reject(mode: str) -> None:
    async with greeted(Discard(), bare_newline=mode) as client:
        client.send("NOOP\nNOOP\r\n")
        assert [(await client.reply()).code for _ in range(2)] == [250, 250]
