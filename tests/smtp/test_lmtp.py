"""LMTP (RFC 2033): LHLO, and a reply for each recipient."""

from __future__ import annotations

import smtplib
import subprocess
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from support.client import Client
from support.daemon import Daemon, messages
from support.peers import peer
from support.server import serve

from smtpd_fork.sinks import Discard

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


class PerRecipient:
    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> list[str]:
        return [
            f"550 5.1.1 <{to}> unknown" if to.startswith("no") else f"250 2.1.5 <{to}> Ok"
            for to in envelope.rcpt_tos
        ]


@asynccontextmanager
async def sending(handler: Any, *recipients: str, **options: Any) -> AsyncIterator[Client]:
    """Serve LMTP, and send commands up to the text of a message."""
    async with (
        serve(handler, listen=["lmtp:127.0.0.1:0"], **options) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        assert (await client.reply()).code == 220
        assert (await client.say("LHLO x")).code == 250
        await client.say("MAIL FROM:<a@b.c>")
        for recipient in recipients:
            await client.say(f"RCPT TO:<{recipient}>")
        assert (await client.say("DATA")).code == 354
        yield client


async def test_each_recipient_has_its_own_reply() -> None:
    async with sending(PerRecipient(), "one@b.c", "nobody@b.c", "two@b.c") as client:
        client.send("x\r\n.\r\n")
        assert [(await client.reply()).code for _ in range(3)] == [250, 550, 250]
        assert (await client.say("NOOP")).code == 250


async def test_one_answer_of_a_handler_applies_to_every_recipient() -> None:
    async with sending(Discard(), "one@b.c", "two@b.c") as client:
        client.send("x\r\n.\r\n")
        assert [(await client.reply()).code for _ in range(2)] == [250, 250]


async def test_a_rejected_message_is_rejected_for_every_recipient() -> None:
    async with sending(Discard(), "one@b.c", "two@b.c", max_message_size=100) as client:
        client.send("x" * 90 + "\r\n" + "y" * 90 + "\r\n.\r\n")
        assert [(await client.reply()).code for _ in range(2)] == [552, 552]
        assert (await client.say("NOOP")).code == 250


async def test_rejected_chunks_get_a_reply_for_every_recipient_after_the_last_one() -> None:
    """RFC 2033 4.2: BDAT LAST has as many replies as the final dot; any other BDAT has one."""
    options = {"listen": ["lmtp:127.0.0.1:0"], "max_message_size": 100}
    async with (
        serve(Discard(), **options) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.reply()
        await client.say("LHLO x", "MAIL FROM:<a@b.c>", "RCPT TO:<b@b.c>", "RCPT TO:<c@b.c>")
        client.send("BDAT 101\r\n" + "x" * 101 + "BDAT 1 LAST\r\nxNOOP\r\n")
        assert [(await client.reply()).code for _ in range(4)] == [552, 552, 552, 250]


async def test_a_failed_handler_is_451_for_every_recipient() -> None:
    class Broken:
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
            raise RuntimeError

    async with sending(Broken(), "one@b.c", "two@b.c") as client:
        client.send("x\r\n.\r\n")
        assert [(await client.reply()).code for _ in range(2)] == [451, 451]
        assert (await client.say("NOOP")).code == 250


@pytest.mark.parametrize("answer", [["250 ok"], ["250 ok"] * 3, ["ok", "ok"], [], None, 7])
async def test_answers_must_be_as_many_as_recipients(answer: Any) -> None:
    class Wrong:
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> Any:
            return answer

    async with sending(Wrong(), "one@b.c", "two@b.c") as client:
        client.send("x\r\n.\r\n")
        assert [(await client.reply()).code for _ in range(2)] == [451, 451]
        assert (await client.say("NOOP")).code == 250


@pytest.mark.parametrize("hello", ["HELO x", "EHLO x"])
async def test_lmtp_accepts_lhlo_only(hello: str) -> None:
    async with serve(Discard(), listen=["lmtp:127.0.0.1:0"]) as server:
        async with await Client.to(server.addresses[0]) as client:
            await client.reply()
            assert (await client.say(hello)).code == 500


async def test_lhlo_is_unknown_in_smtp() -> None:
    async with serve(Discard()) as server, await Client.to(server.addresses[0]) as client:
        await client.reply()
        assert (await client.say("LHLO x")).code == 500


def test_pythons_lmtp_client_delivers_over_a_unix_socket(tmp_path: Path) -> None:
    options = ("-l", f"lmtp:unix:{tmp_path / 'l.sock'}", "--handler", "maildir:M")
    with Daemon(*options, cwd=tmp_path):
        with smtplib.LMTP(str(tmp_path / "l.sock")) as client:
            client.sendmail("a@b.c", ["one@b.c"], "Subject: x\r\n\r\nx\r\n")
    (text,) = messages(tmp_path / "M")
    assert " with LMTP id " in text


def test_swaks_speaks_lmtp_to_several_recipients(tmp_path: Path) -> None:
    swaks = peer("swaks")
    with Daemon("-l", "lmtp:127.0.0.1:0", "--handler", "maildir:M", cwd=tmp_path) as daemon:
        place = daemon.places[0].removeprefix("lmtp:")
        command = [swaks, "--protocol", "LMTP", "--server", place, "--to", "one@b.c,two@b.c"]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        assert ended.returncode == 0, ended.stdout
        assert ended.stdout.count("2.0.0 Ok: queued as") == 2
    (text,) = messages(tmp_path / "M")
    assert "Delivered-To: one@b.c\nDelivered-To: two@b.c\n" in text
