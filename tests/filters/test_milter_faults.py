"""A milter that is down, broken or hostile."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import pytest
from support.client import Client, code_and_enhanced
from support.handlers import Collect
from support.milter import TestMilter, frame
from support.milter_door import ALL_SILENT, door, send
from support.scripted_server import listening
from support.server import serve, until

from smtpd_fork.filters import Milter

if TYPE_CHECKING:
    from pathlib import Path


BROKEN: dict[str, TestMilter] = {
    "options too short": TestMilter(says=frame(b"O", b"\0\0\0\6")),
    "version 1": TestMilter(version=1),
    "version 7": TestMilter(version=7),
    "an action that was not offered": TestMilter(actions=0x200),
    "a protocol flag that was not offered": TestMilter(protocol=0x800),
    "another answer to the options": TestMilter(says=frame(b"c")),
    "HTTP": TestMilter(says=b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    "a frame without a command": TestMilter(says=b"\0\0\0\0"),
    "a frame of 4 GiB": TestMilter(answers={b"M": b"\xff\xff\xff\xffc"}),
    "an unknown answer": TestMilter(answers={b"L": frame(b"Z")}),
    "a change before the end": TestMilter(answers={b"L": frame(b"h", b"X\0y\0")}),
    "skip where nothing follows": TestMilter(answers={b"M": frame(b"s")}),
    "an answer to nothing": TestMilter(answers={b"M": frame(b"c") * 3}),
    "a field with an endless name": TestMilter(edits=[frame(b"h", b"X" * 999 + b"\0v\0")]),
    "a field without a name": TestMilter(edits=[frame(b"h", b"\0v\0")]),
    "a field with a colon in its name": TestMilter(edits=[frame(b"h", b"X: y\r\nZ\0v\0")]),
    "a field with a NUL": TestMilter(edits=[frame(b"h", b"X\0v\0w\0")]),
    "a change without a number": TestMilter(edits=[frame(b"m", b"X")]),
    "a recipient with a line end": TestMilter(edits=[frame(b"+", b"<b@x>\r\nDATA\0")]),
    "a recipient that is none": TestMilter(edits=[frame(b"+", b"<>\0")]),
    "a recipient that is not UTF-8": TestMilter(edits=[frame(b"+", b"<b\xff@x>\0")]),
    "a sender without a domain": TestMilter(edits=[frame(b"e", b"<postmaster>\0")]),
    "a sender with a space": TestMilter(edits=[frame(b"e", b"<a b@x>\0")]),
    "parameters with a control character": TestMilter(edits=[frame(b"2", b"<b@x>\0A=\x01\0")]),
    "too many changes": TestMilter(edits=[frame(b"h", b"X\0y\0")] * 1001),
    "too many deletions": TestMilter(edits=[frame(b"m", b"\0\0\0\1X\0\0")] * 10_001),
    "a body without end": TestMilter(edits=[frame(b"b", b"x" * 65_000)] * 60),
    "the end in the middle": TestMilter(stops_at=b"R"),
    "the end after the message": TestMilter(stops_at=b"E"),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_a_broken_milter_counts_as_down_and_changes_nothing(name: str) -> None:
    options = {"max_message_size": 100_000}
    async with door(BROKEN[name], options=options) as (client, kept):
        assert await send(client) == (451, "4.7.1")
        assert (await client.say("NOOP")).code == 250
    assert kept.messages == []


@pytest.mark.parametrize(
    ("when", "expected"),
    [("defer", (451, "4.7.1")), ("refuse", (554, "5.3.0")), ("accept", (250, "2.0.0"))],
)
@pytest.mark.parametrize("stages", [["data"], ["mail", "rcpt"]])
async def test_when_down_defers_refuses_or_accepts_messages(
    when: str, expected: tuple[int, str], stages: list[str],
    tmp_path: Path, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    kept = Collect()
    milter = Milter(f"unix:{tmp_path}/none", when_down=when, stages=stages)  # type: ignore[arg-type]
    async with serve([milter, kept]) as server, await Client.to(server.addresses[0]) as client:
        await client.greet()
        if stages == ["data"] or when == "accept":
            assert await send(client) == expected
        else:
            assert code_and_enhanced(await client.say("MAIL FROM:<a@example.org>")) == expected
    assert len(kept.messages) == (when == "accept")
    records = [each for each in caplog.records if each.name == "smtpd_fork.milter"]
    assert "No such file or directory" in records[0].getMessage()
    assert "none has failed" in records[0].getMessage()
    assert records[0].__dict__["client"].startswith("127.0.0.1:")


async def test_a_silent_milter_times_out_and_progress_extends_the_timeout() -> None:
    milter = TestMilter(answers={b"E": b""})
    async with door(milter, timeout=0.05) as (client, kept):
        assert await send(client) == (451, "4.7.1")
        milter.answers = {b"E": frame(b"p") * 3 + frame(b"c")}
        assert await send(client) == (250, "2.0.0")
    assert len(kept.messages) == 1


async def test_endless_progress_is_limited_by_the_total_timeout() -> None:
    async def at_work(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not writer.is_closing():
            writer.write(frame(b"p"))
            await writer.drain()
            await asyncio.sleep(0.01)

    milter = TestMilter(talk=at_work)
    async with door(milter, timeout=0.05, total_timeout=0.3) as (client, _):
        assert await send(client) == (451, "4.7.1")


async def test_a_milter_that_does_not_read_times_out() -> None:
    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(frame(b"O", struct.pack(">III", 6, 0x1FF, ALL_SILENT)))
        await asyncio.sleep(0.5)
        writer.transport.abort()

    milter = TestMilter(talk=deaf)
    async with door(milter, timeout=0.1) as (client, _):
        text = "A: b\r\n\r\n" + ("x" * 70 + "\r\n") * 40_000
        assert await send(client, text=text) == (451, "4.7.1")


async def test_a_milter_with_a_full_backlog_times_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, kept = str(tmp_path / "full"), Collect()
    with socket.socket(socket.AF_UNIX) as full, ExitStack() as stack:
        full.bind(path)
        full.listen(0)
        with suppress(BlockingIOError):
            while True:
                waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
                waiting.setblocking(False)
                waiting.connect(path)
        judge = Milter(f"unix:{path}", connect_timeout=0.03)
        async with serve([judge, kept]) as server, await Client.to(server.addresses[0]) as client:
            await client.greet()
            assert await send(client) == (451, "4.7.1")
    assert "no connection within 0.03 s" in caplog.text


async def test_a_message_is_checked_completely_if_its_client_has_disconnected() -> None:
    milter = TestMilter(answers={b"E": b""})
    async with door(milter) as (client, _):
        await client.say("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>", "DATA")
        client.send("x\r\n.\r\n")
        await until(lambda: milter.commands.endswith(b"E"))
        client.writer.transport.abort()
        await asyncio.sleep(0)
        milter.hang_up()


async def test_a_message_with_a_too_large_header_is_refused() -> None:
    async with door(TestMilter()) as (client, kept):
        assert await send(client, text="a:\r\n" * 10_001 + "\r\nx\r\n") == (552, "5.3.4")
        assert await send(client, text="a:\r\n" * 9_999 + "\r\nx\r\n") == (250, "2.0.0")
    assert len(kept.messages) == 1


@pytest.mark.parametrize(
    ("octets", "expected"), [(65_536, (250, "2.0.0")), (65_537, (552, "5.3.4"))]
)
async def test_a_message_with_a_field_too_long_for_libmilter_is_refused(
    octets: int, expected: tuple[int, str]
) -> None:
    folded = "x\r\n " * 16_000
    field = f"a:{folded}{'x' * (octets - 2 - len(folded) - 2)}\r\n"
    milter = TestMilter()
    async with door(milter) as (client, _):
        assert await send(client, text=f"{field}\r\nx\r\n") == expected
    assert all(len(data) <= 65_535 for data in milter.data(b"L"))


chance = random.Random(7)


async def wild(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer as a milter, but randomly send nothing or garbage, or close the connection."""
    while True:
        (length,) = struct.unpack(">I", await reader.readexactly(4))
        command = (await reader.readexactly(length))[:1]
        dice = chance.random()
        if command in {b"D", b"A"}:
            continue
        if command == b"Q" or dice < 0.02:
            return
        if dice < 0.03:
            writer.transport.abort()
        elif dice < 0.04:
            writer.write(frame(b"Z"))
        elif command == b"O":
            writer.write(frame(b"O", struct.pack(">III", 6, 0x1FF, 0)))
        elif dice < 0.06:
            writer.write(frame(chance.choice([b"r", b"t", b"a"])))
        else:
            writer.write(frame(b"c"))


async def several(address: Any, name: str) -> set[str]:
    """Send messages, each again in a new session after a refusal; return the accepted ones."""
    taken = set()
    for number in range(8):
        async with await Client.to(address) as client:
            with suppress(AssertionError, asyncio.IncompleteReadError, ConnectionError):
                await client.greet()
                for again in range(2):
                    text = f"X-Name: {name}-{number}-{again}\r\n\r\nhello\r\n"
                    if (await send(client, text=text))[0] == 250:
                        taken.add(text)
    return taken


@pytest.mark.parametrize("stages", [["data"], ["connect", "helo", "mail", "rcpt"]])
async def test_random_failures_of_a_milter_lose_no_message_and_leave_no_connection(
    stages: list[str],
) -> None:
    milter, kept = TestMilter(talk=wild), Collect()
    before = asyncio.all_tasks()
    async with listening(milter):
        judge = Milter(milter.address, stages=stages)  # type: ignore[arg-type]
        async with serve([judge, kept], max_from_ip=0) as server:
            to = server.addresses[0]
            taken = await asyncio.gather(*(several(to, str(each)) for each in range(10)))
            await until(lambda: not server.gate.count)
            await until(lambda: not judge.status.connections)
    await until(lambda: asyncio.all_tasks() <= before)
    stored = [message.decode() for message in kept.messages]
    assert sorted(stored) == sorted(set().union(*taken))
    assert len(stored) > 20
