"""Aliases of the filter accept: their addresses, and the reply to the client."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from aiosmtpd.smtp import MISSING
from support.accept import MAP, accept, rcpt
from support.client import Client
from support.handlers import Collect
from support.server import serve

from smtpd_fork.handlers.route import Route
from smtpd_fork.message import Mail, Replies
from smtpd_fork.sinks import Sink

if TYPE_CHECKING:
    from pathlib import Path


class PerRecipient(Sink):
    """A sink whose reply depends on the local part of the recipient, and that keeps messages."""

    def __init__(self, **replies: str) -> None:
        self.replies = replies
        self.mails: list[Mail] = []

    async def deliver(self, mail: Mail) -> Replies:
        self.mails.append(mail)
        return [
            self.replies.get(each.address.partition("@")[0], "250 2.0.0 Ok")
            for each in mail.recipients
        ]


async def test_each_address_of_an_alias_has_the_parameters_of_its_recipient(tmp_path: Path) -> None:
    kept = Collect()
    async with (
        serve([accept(tmp_path), kept]) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.greet()
        await client.say("MAIL FROM:<a@example.net>", "RCPT TO:<bob@example.com>")
        await client.say("RCPT TO:<all@example.com> NOTIFY=NEVER", "RCPT TO:<postmaster>")
        await client.say("DATA")
        client.send("x\r\n.\r\n")
        assert (await client.reply()).code == 250
    never = {"NOTIFY": "NEVER"}
    envelope = kept.envelopes[0]
    assert envelope.rcpt_params == [{}, never, never, {}]
    assert len(envelope.rcpt_tos) == 4


@pytest.mark.parametrize("end", ["DATA", "BDAT"])
async def test_in_lmtp_a_recipient_gets_the_worst_reply_of_its_addresses(
    tmp_path: Path, end: str
) -> None:
    sink = PerRecipient(carol="550 5.2.0 No", dave="451 4.3.0 Later", bob="250 2.0.0 bob")
    text = f"{MAP}two@example.com bob@example.com carol@example.com\n"
    async with (
        serve([accept(tmp_path, text), sink], listen=["lmtp:127.0.0.1:0"]) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.reply()
        await client.say("LHLO x", "MAIL FROM:<a@example.net>")
        for name in ("all", "nobody", "bob", "two", "carol", "postmaster"):
            await client.say(f"RCPT TO:<{name}@example.com>")
        if end == "DATA":
            await client.say("DATA")
        client.send("x\r\n.\r\n" if end == "DATA" else "BDAT 3 LAST\r\nx\r\n")
        replies = [(await client.reply()).text for _ in range(5)]
        # two@ adds no new address, so it gets the worst of all replies.
        assert replies == [
            "4.3.0 Later", "2.0.0 bob", "4.3.0 Later", "5.2.0 No", "2.0.0 Ok",
        ]  # fmt: skip
        assert (await client.say("NOOP")).code == 250
    assert [each.address for each in sink.mails[0].recipients] == [
        *("bob@example.com", "carol@example.com", "dave@example.org", "postmaster@example.com"),
    ]


async def test_in_smtp_a_message_has_one_reply_for_all_addresses(tmp_path: Path) -> None:
    sink = PerRecipient(dave="451 4.3.0 Later")
    async with (
        serve([accept(tmp_path), sink]) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.greet()
        assert (await client.deliver(to="all@example.com")).code == 451
        assert (await client.deliver(to="bob@example.com")).code == 250


class Mailboxes:
    """A handler that accepts some mailboxes, and records the addresses of RCPT."""

    def __init__(self, *unknown: str) -> None:
        self.unknown = unknown
        self.asked: list[str] = []

    async def handle_RCPT(
        self, server: Any, session: Any, envelope: Any, address: str, options: list[str]
    ) -> Any:
        await asyncio.sleep(0)
        self.asked.append(address)
        if address in self.unknown:
            return "550 5.1.1 No such mailbox in the next server"
        if address == "carol@example.com":
            return MISSING
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 Mine"


@pytest.mark.parametrize("conditional", [lambda it: it, lambda it: Route(it, when={"tls": False})])
async def test_later_handlers_are_called_for_each_address_of_an_alias(
    tmp_path: Path, conditional: Any
) -> None:
    behind, kept = Mailboxes(), Collect()
    async with (
        serve([Collecting(), conditional(accept(tmp_path)), behind, kept]) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.greet()
        assert (await client.deliver(to="all@example.com")).code == 250
        behind.unknown = ("dave@example.org",)
        assert await rcpt(client, "postmaster", "all@example.com", "bob@example.com") == [
            (250, "2.1.5"), (550, "5.1.1"), (250, "2.1.5"),
        ]  # fmt: skip
        await client.say("DATA")
        client.send("x\r\n.\r\n")
        assert (await client.reply()).code == 250
    each = ["bob@example.com", "carol@example.com", "dave@example.org"]
    assert behind.asked == [*each, "postmaster", *each, "bob@example.com"]
    assert [envelope.rcpt_tos for envelope in kept.envelopes] == [
        each, ["postmaster", "bob@example.com"],
    ]  # fmt: skip


class Collecting:
    """A sink without ``handle_RCPT``."""

    async def handle_RCPT(self, *_: Any) -> Any:
        return MISSING


async def test_each_rcpt_of_an_alias_counts_as_a_recipient(tmp_path: Path) -> None:
    async with (
        serve([accept(tmp_path), Collect()], max_recipients=5) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.greet()
        codes = [code for code, _ in await rcpt(client, *["all@example.com"] * 7)]
        assert codes == [250] * 5 + [452] * 2
        codes = [code for code, _ in await rcpt(client, "all@example.com", "postmaster")]
        assert codes == [250, 250]


async def test_an_alias_loop_gets_451_and_a_log_line_with_client_and_session(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = "a@example.com b@example.com\nb@example.com a@example.com\n"
    async with (
        serve([accept(tmp_path, text), Collect()]) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.greet()
        assert await rcpt(client, "a@example.com") == [(451, "4.3.5")]
    line = next(each for each in caplog.messages if "alias" in each)
    assert "127.0.0.1:" in line
    assert line.endswith(
        ": alias not resolved: <a@example.com>: <a@example.com> is an alias of itself"
    )
