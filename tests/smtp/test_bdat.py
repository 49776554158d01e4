"""BDAT: CHUNKING and BINARYMIME (RFC 3030); a chunk is never read as commands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from aiosmtpd.handlers import Proxy as AiosmtpdProxy
from support.client import MAIL, RCPT, Client, code_and_enhanced, replies
from support.handlers import Collect
from support.server import greeted, serve

from smtpd_fork import Server
from smtpd_fork.sinks import Debug, Discard, Maildir

if TYPE_CHECKING:
    from pathlib import Path

    from support.tls import Certificates


class Plain:
    """A handler that does not support binary messages."""

    async def handle_DATA(self, *args: Any) -> str:
        return "250 2.0.0 Ok"


async def test_a_message_comes_in_chunks() -> None:
    handler = Collect()
    async with serve(handler) as server, await Client.to(server.addresses[0]) as client:
        assert {"CHUNKING", "BINARYMIME"} <= set((await client.greet()).lines)
        await client.say(MAIL, RCPT)
        client.send("BDAT 8\r\nfirst.\r\nBDAT 3\r\n.\r\nbdat 6 last\r\nlast\r\nNOOP\r\n")
        assert await replies(client, 4) == [250, 250, 250, 250]
        assert (await client.say(RCPT)).code == 503
    assert handler.messages == [b"first.\r\n.\r\nlast\r\n"]


@pytest.mark.parametrize(
    ("handlers", "offered"),
    [
        (Discard(), True),
        (Maildir, True),
        (Debug(), True),
        (AiosmtpdProxy("127.0.0.1", 25), False),
        ([Collect(), Discard()], True),
        ([Plain(), Discard()], False),  # it may take a message
        ([Discard(), Plain()], True),  # it gets no messages
    ],
)
async def test_binarymime_is_offered_where_every_octet_is_kept(
    handlers: Any, offered: bool, tmp_path: Path
) -> None:
    chosen = Maildir(tmp_path) if handlers is Maildir else handlers
    async with (
        Server(chosen, listen=["127.0.0.1:0"], hostname="mx.example.com") as server,
        await Client.to(server.addresses[0]) as client,
    ):
        assert ("BINARYMIME" in (await client.greet()).lines) is offered
        reply = await client.say(f"{MAIL} BODY=BINARYMIME")
        assert reply.code == (250 if offered else 501)


async def test_an_empty_last_chunk_ends_a_message() -> None:
    handler = Collect()
    async with greeted(handler) as client:
        await client.say(MAIL, RCPT)
        client.send("BDAT 4\r\nabc\rBDAT 1\r\n\nBDAT 0 LAST\r\n")
        assert (await client.reply()).code == 250
        assert await replies(client, 2) == [250, 250]
        await client.say(MAIL, RCPT)
        assert (await client.say("BDAT 0 LAST")).code == 250
    assert handler.messages == [b"abc\r\n", b""]


async def test_a_chunk_may_hold_any_bytes_and_hides_commands() -> None:
    handler = Collect()
    data = bytes(range(256)) * 300 + b"\r\n.\r\nQUIT\r\n" + b"x" * 100_000
    async with greeted(handler) as client:
        await client.say(f"{MAIL} BODY=BINARYMIME", RCPT)
        client.send(b"BDAT %d LAST\r\n" % len(data) + data + b"NOOP\r\n")
        assert await replies(client, 2) == [250, 250]
    assert handler.messages == [data]
    assert handler.envelopes[0].body == "BINARYMIME"


BINARY = b"\r\n.\r\n\n\r\0" + b"x" * 2000 + b"\r"


@pytest.mark.parametrize("mode", ["normalize", "reject", "accept"])
async def test_binary_content_has_no_line_ends_to_normalize_and_no_lines_to_limit(
    mode: str,
) -> None:
    """RFC 3030 3."""
    handler = Collect()
    async with greeted(handler, bare_newline=mode, max_line_length=1000) as client:
        await client.say(f"{MAIL} BODY=BINARYMIME", RCPT)
        half = len(BINARY) // 2
        client.send(b"BDAT %d\r\n%b" % (half, BINARY[:half]))
        client.send(b"BDAT %d LAST\r\n%b" % (len(BINARY) - half, BINARY[half:]))
        assert await replies(client, 2) == [250, 250]
    assert handler.messages == [BINARY]


async def test_chunks_that_are_too_large_get_552_after_the_chunk_and_the_session_continues() -> (
    None
):
    handler = Collect()
    async with greeted(handler, max_message_size=10) as client:
        await client.say(MAIL, RCPT)
        client.send("BDAT 6\r\n123456BDAT 6\r\nQUIT\r\nBDAT 2 LAST\r\nabNOOP\r\n")
        assert await replies(client, 4) == [250, 552, 552, 250]
        await client.say(MAIL, RCPT)
        client.send("BDAT 11 LAST\r\n01234567890")
        assert code_and_enhanced(await client.reply()) == (552, "5.3.4")
        assert (await client.deliver("ok\r\n")).code == 250
    assert handler.messages == [b"ok\r\n"]


@pytest.mark.parametrize("before", ["", "EHLO x\r\n", f"EHLO x\r\n{MAIL}\r\n"])
async def test_a_chunk_out_of_sequence_is_read_and_gets_503(before: str) -> None:
    async with serve(Discard()) as server, await Client.to(server.addresses[0]) as client:
        await client.reply()
        client.send(f"{before}BDAT 6\r\nQUIT\r\nNOOP\r\n")
        await replies(client, before.count("\r\n"))
        assert await replies(client, 2) == [503, 250]


@pytest.mark.parametrize("end", ["RSET", "EHLO again", "HELO again"])
async def test_a_chunk_that_was_refused_is_forgotten_with_its_transaction(end: str) -> None:
    handler = Collect()
    async with greeted(handler) as client:
        client.send("BDAT 3\r\nabc")
        assert (await client.reply()).code == 503
        await client.say(end)
        await client.say(MAIL, RCPT)
        client.send("BDAT 3 LAST\r\ndef")
        assert (await client.reply()).code == 250
    assert handler.messages == [b"def"]


async def test_a_chunk_rejected_without_a_transaction_does_not_affect_the_next_transaction() -> (
    None
):
    handler = Collect()
    async with greeted(handler) as client:
        client.send("BDAT 3\r\nabc")
        assert (await client.reply()).code == 503
        assert (await client.deliver("x\r\n")).code == 250
        client.send("BDAT 3 LAST\r\nabc")
        assert (await client.reply()).code == 503
        await client.say(MAIL, RCPT)
        client.send("BDAT 3 LAST\r\ndef")
        assert (await client.reply()).code == 250
    assert handler.messages == [b"x\r\n", b"def"]


@pytest.mark.parametrize("end", ["RSET", "EHLO again", "HELO again"])
async def test_chunks_are_forgotten_with_their_transaction(end: str) -> None:
    """Otherwise the text of one transaction would be in the message of another."""
    handler = Collect()
    async with greeted(handler) as client:
        await client.say(MAIL, RCPT)
        client.send("BDAT 6\r\nsecret")
        assert (await client.reply()).code == 250
        assert (await client.say(end)).code == 250
        await client.say(MAIL, RCPT)
        client.send("BDAT 3 LAST\r\nabc")
        assert (await client.reply()).code == 250
        assert (await client.deliver("x\r\n")).code == 250
    assert handler.messages == [b"abc", b"x\r\n"]


async def test_plaintext_chunks_are_not_part_of_a_message_after_starttls(
    certificates: Certificates,
) -> None:
    handler = Collect()
    async with greeted(handler, tls_context=certificates.server) as client:
        await client.say(MAIL, RCPT)
        client.send("BDAT 8\r\ninjected")
        assert (await client.reply()).code == 250
        await client.start_tls(certificates.client)
        await client.say("EHLO x", MAIL, RCPT)
        client.send("BDAT 3 LAST\r\nabc")
        assert (await client.reply()).code == 250
    assert handler.messages == [b"abc"]


@pytest.mark.parametrize("command", ["RSET", "EHLO x", "HELO x"])
async def test_the_end_of_a_transaction_releases_the_memory_of_its_chunks(command: str) -> None:
    async with (
        serve(Discard(), max_buffered=100_000) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.greet()
        for _ in range(5):
            await client.say(MAIL, RCPT)
            client.send(b"BDAT 90000\r\n" + b"x" * 90_000)
            assert (await client.reply()).code == 250
            assert server._budget.used >= 90_000 - 65_536
            assert (await client.say(command)).code == 250
        assert server._budget.used == 0


async def test_after_bdat_data_is_503() -> None:
    async with greeted(Discard()) as client:
        await client.say(MAIL, RCPT)
        client.send("BDAT 3\r\nabcDATA\r\n")
        assert await replies(client, 2) == [250, 503]
        assert (await client.say("BDAT 0 LAST")).code == 250


async def test_binarymime_requires_bdat() -> None:
    async with greeted(Discard()) as client:
        await client.say(f"{MAIL} BODY=BINARYMIME", RCPT)
        assert code_and_enhanced(await client.say("DATA")) == (503, "5.5.1")
        client.send("BDAT 3 LAST\r\nabc")
        assert (await client.reply()).code == 250
        assert (await client.deliver()).code == 250


@pytest.mark.parametrize("arg", ["", " ", " x", " -1", " 5 FIRST", " 5 LAST 6", " ²", " 5,6"])
async def test_a_bdat_without_a_valid_size_ends_the_session(arg: str) -> None:
    async with greeted(Discard()) as client:
        assert (await client.say(f"BDAT{arg}")).code == 501
        assert await client.ended()


async def test_plaintext_bdat_is_530_and_its_chunk_is_read_if_tls_is_required(
    certificates: Certificates,
) -> None:
    """RFC 3030 2: the chunk is read whatever the reply is."""
    async with greeted(Discard(), tls_context=certificates.server, require_starttls=True) as client:
        client.send("BDAT 6\r\nQUIT\r\nNOOP\r\n")
        assert await replies(client, 2) == [530, 250]


async def test_bdat_before_auth_is_530_and_its_chunk_is_read() -> None:
    options = {"auth_required": True, "auth_require_tls": False, "authenticator": print}
    with pytest.warns(UserWarning, match="Requiring AUTH"):
        async with greeted(Discard(), session_options=options) as client:
            client.send("BDAT 6\r\nQUIT\r\nNOOP\r\n")
            assert await replies(client, 2) == [530, 250]


async def test_chunks_above_the_memory_limit_are_452(caplog: pytest.LogCaptureFixture) -> None:
    handler = Collect()
    async with (
        serve(handler, max_buffered=100_000) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.greet()
        await client.say(MAIL, RCPT)
        chunk = b"x" * 100_000
        client.send(b"BDAT 100000\r\n" + chunk)
        assert (await client.reply()).code == 250
        assert server._budget.used >= 100_000 - 65_536
        client.send(b"BDAT 100000 LAST\r\n" + chunk)
        second = await client.reply()
        assert code_and_enhanced(second) == (452, "4.3.1")
        assert server._budget.used == 0
        assert (await client.deliver()).code == 250
    assert len(handler.messages) == 1


@pytest.mark.parametrize("first", ["BDAT 0", "BDAT 2\r\nx\n", "BDAT 2000\r\n" + 2000 * "x"])
async def test_recipients_after_the_first_chunk_are_rejected(first: str) -> None:
    """RFC 3030 3, whether the chunk was accepted or not; sender, AUTH and DATA are rejected too."""
    handler = Collect()
    async with greeted(handler, max_message_size=1000) as client:
        await client.say(MAIL, RCPT)
        client.send(first.replace("x\n", "xx") + "\r\n" * (first == "BDAT 0"))
        assert (await client.reply()).code in {250, 552}
        for command in (RCPT, "RCPT TO:c@example.com", MAIL, "DATA"):
            assert code_and_enhanced(await client.say(command)) == (503, "5.5.1")
        assert (await client.say("RSET")).code == 250
        await client.say(MAIL, RCPT, "RCPT TO:<c@example.com>")
        client.send("BDAT 2 LAST\r\nok")
        assert (await client.reply()).code == 250
    assert [envelope.rcpt_tos for envelope in handler.envelopes] == [
        ["b@example.com", "c@example.com"]
    ]


async def test_a_chunk_without_a_transaction_does_not_affect_the_next_one() -> None:
    async with greeted(Discard()) as client:
        assert (await client.say("BDAT 2\r\n")).code == 503
        await client.say(MAIL, RCPT)
        client.send("BDAT 2 LAST\r\nok")
        assert (await client.reply()).code == 250
