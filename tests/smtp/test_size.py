"""Sizes: of a message (RFC 1870), of its lines, of all that is buffered; LIMITS (RFC 9422)."""

from __future__ import annotations

import re
import tracemalloc

import pytest
from support.client import MAIL, RCPT, Client, code_and_enhanced
from support.handlers import Collect
from support.server import greeted, serve, until

from smtpd_fork.config import Config
from smtpd_fork.dialogue import Tally
from smtpd_fork.dialogue.budget import ALLOWANCE
from smtpd_fork.sinks import Discard
from smtpd_fork.smtp import SMTP


def sent_by(command: str, text: str) -> str:
    """Return the bytes that a client sends after RCPT for the message *text*."""
    if command == "BDAT":
        return f"BDAT {len(text)} LAST\r\n{text}"
    return f"DATA\r\n{re.sub('(?m)^[.]', '..', text)}.\r\n"


async def test_recipients_above_the_limit_are_452() -> None:
    handler = Collect()
    async with (
        serve(handler, max_recipients=2) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        assert "LIMITS RCPTMAX=2" in (await client.greet()).lines
        await client.say(MAIL)
        assert [(await client.say(RCPT)).code for _ in range(2)] == [250, 250]
        assert code_and_enhanced(await client.say(RCPT)) == (452, "4.5.3")
        await client.say("DATA")
        client.send("x\r\n.\r\n")
        assert (await client.reply()).code == 250
        assert (await client.deliver()).code == 250  # it counts anew
    assert [len(envelope.rcpt_tos) for envelope in handler.envelopes] == [2, 1]


@pytest.mark.parametrize(
    ("size", "code"), [(0, 250), (1000, 250), (1001, 552), (10**19, 552), (10**30, 552)]
)
async def test_a_declared_size_is_checked_before_the_message(size: int, code: int) -> None:
    async with (
        serve(Discard(), max_message_size=1000) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        assert "SIZE 1000" in (await client.greet()).lines
        assert (await client.say(f"{MAIL} SIZE={size}")).code == code


LONG_LINES = [
    pytest.param(None, "x" * 10_000 + "\r\n", 250, id="no limit by default"),
    pytest.param("1000", "x" * 998 + "\r\n", 250, id="as long as the limit"),
    pytest.param("1000", "." + "x" * 997 + "\r\n", 250, id="and begins with a dot"),
    pytest.param("1000", "x" * 999 + "\r\n", 500, id="one octet longer"),
    pytest.param("1k", "x" * 5000 + "\r\n", 500, id="much longer"),
    pytest.param("1000", "x\n" * 5000 + "\r\n", 250, id="LF ends lines as well"),
]


@pytest.mark.parametrize(("limit", "text", "code"), LONG_LINES)
@pytest.mark.parametrize("command", ["DATA", "BDAT"])
async def test_a_line_above_the_limit_is_rejected_at_the_end_of_the_message(
    limit: str | None, text: str, code: int, command: str
) -> None:
    handler = Collect()
    tally = Tally()
    async with greeted(handler, max_line_length=limit, session_options={"tally": tally}) as client:
        await client.say(MAIL, RCPT)
        client.send(sent_by(command, f"first\r\n{text}last\r\n"))
        replies = [await client.reply() for _ in range(1 + (command == "DATA"))]
        assert replies[-1].code == code
        if code == 500:
            assert replies[-1].text.startswith("5.6.0 Line too long (see RFC5321 4.5.3.1.6)")
        assert tally.malformed == (code == 500)
        assert (await client.deliver()).code == 250
    kept = re.sub("\r?\n", "\r\n", f"first\r\n{text}last\r\n").encode()
    assert handler.messages[:-1] == ([kept] if code == 250 else [])


class ShortLines(SMTP):
    """Sets aiosmtpd's attribute, as users do."""

    line_length_limit = 20


async def test_a_reload_changes_the_limit_of_lines_for_new_sessions() -> None:
    async with serve(Discard()) as server:
        for limit, code in ((10, 500), (0, 250)):
            await server.reload(Config.build({"listen": ["127.0.0.1:0"], "max_line_length": limit}))
            async with await Client.to(server.addresses[0]) as client:
                await client.greet()
                assert (await client.deliver("x" * 100 + "\r\n")).code == code


@pytest.mark.parametrize(("option", "length", "code"), [(0, 18, 250), (0, 19, 500), (10, 9, 500)])
async def test_the_class_may_set_a_limit_and_the_smaller_one_applies(
    option: int, length: int, code: int
) -> None:
    async with greeted(Discard(), session_class=ShortLines, max_line_length=option) as client:
        assert (await client.deliver("x" * length + "\r\n")).code == code


DOTS = ".\r\n..\r\n.x\r\nx\r\n"
"""14 octets; with DATA each of the first three lines gets a dot more."""


@pytest.mark.parametrize(("limit", "code"), [(14, 250), (13, 552)])
@pytest.mark.parametrize("command", ["DATA", "BDAT"])
async def test_doubled_dots_do_not_count_towards_the_size(
    limit: int, code: int, command: str
) -> None:
    """RFC 1870 3."""
    tally = Tally()
    async with greeted(
        Discard(), max_message_size=limit, session_options={"tally": tally}
    ) as client:
        assert (await client.say(f"{MAIL} SIZE={min(limit, len(DOTS))}")).code == 250
        await client.say(RCPT)
        client.send(sent_by(command, DOTS))
        replies = [await client.reply() for _ in range(1 + (command == "DATA"))]
        assert replies[-1].code == code
    assert (tally.too_big, tally.content) == ((0, 14) if code == 250 else (1, 0))


@pytest.mark.parametrize(("limit", "code"), [(200, 250), (199, 552)])
@pytest.mark.parametrize("command", ["DATA", "BDAT"])
async def test_the_size_of_a_message_is_that_after_normalization(
    limit: int, code: int, command: str
) -> None:
    handler = Collect()
    async with greeted(handler, max_message_size=limit) as client:
        await client.say(MAIL, RCPT)
        client.send(sent_by(command, "\n" * 99 + "\r\n"))
        replies = [await client.reply() for _ in range(1 + (command == "DATA"))]
        assert replies[-1].code == code
    assert handler.messages == [b"\r\n" * 100][: code == 250]


async def test_a_message_that_is_too_large_gets_552_at_its_end_and_is_not_stored() -> None:
    packet = (b"x" * 78 + b"\r\n") * 1000
    async with greeted(Discard(), max_message_size=100_000) as client:
        await client.say(MAIL, RCPT, "DATA")
        tracemalloc.start()
        try:
            for _ in range(400):  # 32 MB
                client.send(packet)
                await client.writer.drain()
            client.send(".\r\nNOOP\r\n")
            assert code_and_enhanced(await client.reply()) == (552, "5.3.4")
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 4_000_000  # packets on their way, and what one read takes
        assert (await client.reply()).code == 250
        assert (await client.deliver()).code == 250


async def test_messages_above_the_memory_limit_are_452_and_others_are_not_affected() -> None:
    handler = Collect()
    async with serve(handler, max_buffered=100_000) as server:
        budget = server._budget
        first = await Client.to(server.addresses[0])
        await first.greet()
        await first.say(MAIL, RCPT, "DATA")
        first.send("f" * 70 + "\r\n")
        second = await Client.to(server.addresses[0])
        await second.greet()
        await second.say(MAIL, RCPT, "DATA")
        second.send(("s" * 78 + "\r\n") * 4000)
        second.send(".\r\n")
        assert code_and_enhanced(await second.reply()) == (452, "4.3.1")
        first.send(".\r\n")
        assert (await first.reply()).code == 250
        assert budget.used == 0
        assert (await second.deliver()).code == 250
        await first.close()
        await second.close()
    assert handler.messages[0] == b"f" * 70 + b"\r\n"


@pytest.mark.parametrize(
    ("mode", "buffered", "code"),
    [("normalize", 50_000, 250), ("normalize", 1900, 452), ("accept", 1900, 250)],
)
@pytest.mark.parametrize("command", ["DATA", "BDAT"])
async def test_bytes_added_by_normalization_are_charged(
    mode: str, buffered: int, code: int, command: str
) -> None:
    async with (
        serve(Discard(), max_buffered=buffered, bare_newline=mode) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.greet()
        await client.say(MAIL, RCPT)
        client.send(sent_by(command, "\n" * (ALLOWANCE // 2 + 998) + "\r\n"))
        replies = [await client.reply() for _ in range(1 + (command == "DATA"))]
        assert replies[-1].code == code
        assert server._budget.used == 0


async def test_data_is_452_while_memory_is_short() -> None:
    async with serve(Discard(), max_buffered=100_000) as server:
        budget = server._budget
        client = await Client.to(server.addresses[0])
        await client.greet()
        await client.say(f"{MAIL} SIZE=80000", RCPT)
        budget.used = 100_000  # as if other sessions held it
        assert code_and_enhanced(await client.say("DATA")) == (452, "4.3.1")
        budget.used = 0
        assert (await client.say("DATA")).code == 354
        client.send(("x" * 78 + "\r\n") * 1000)
        await until(lambda: budget.used)
        client.reset()
        await until(lambda: not server.gate.count)
        assert budget.used == 0


HOP = "received:\tfrom x by y;\r\n\tdate\r\n"


@pytest.mark.parametrize("command", ["DATA", "BDAT"])
@pytest.mark.parametrize(
    ("header", "code"),
    [
        (HOP * 3, 250),
        (HOP * 4, 554),
        (HOP * 3 + "\r\n" + HOP * 4, 250),
        ("X-Received: x\r\n" * 9, 250),
        ("Subject: x\r\n Received: folded\r\n" * 9, 250),
    ],
    ids=["at the limit", "one more", "in the text", "another field", "in a folded line"],
)
async def test_a_message_in_a_mail_loop_is_refused(command: str, header: str, code: int) -> None:
    async with greeted(Discard(), max_hops=3) as client:
        await client.say(MAIL, RCPT)
        client.send(sent_by(command, f"{header}Subject: x\r\n\r\nhello\r\n"))
        if command == "DATA":
            assert (await client.reply()).code == 354
        reply = await client.reply()
        assert reply.code == code
        assert code == 250 or reply.text.startswith("5.4.6")
        assert (await client.deliver()).code == 250
