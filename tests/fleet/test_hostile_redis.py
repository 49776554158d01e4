"""A hostile server, or none, instead of the fleet's Redis costs a bounded time and memory."""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
import tracemalloc
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from support.fleet import arrivals, close_all, fleet, in_state, nodes, outage_lines, until
from support.raw_server import close, raw_server, says, silence

from smtpd_fork.fleet import State
from smtpd_fork.fleet.redis_link import SCRIPT

if TYPE_CHECKING:
    from support.raw_server import Behaviour

pytestmark = pytest.mark.usefixtures("soon")

OPTIONS: dict[str, Any] = {"max_from_ip": 5, "fleet_timeout": 0.2, "fleet_lease": 2}

HASH = hashlib.sha1(SCRIPT.encode()).hexdigest().encode()
OTHER = b"0" * 40


def answer(*fields: object) -> bytes:
    data = msgspec.msgpack.encode(fields)
    return b"$%d\r\n%b\r\n" % (len(data), data)


GOOD = answer(False, 1, 0, 0, 0, 0, [])


def redis_that_answers(text: bytes, first: bytes = GOOD) -> Behaviour:
    """Behave like Redis, but answer all messages after the first with *text*."""
    messages = 0

    async def behaviour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal messages
        while line := await reader.readline():
            words = []
            for _ in range(int(line[1:])):
                size = int((await reader.readline())[1:])
                words.append((await reader.readexactly(size + 2))[:-2])
            match words[0].upper():
                case b"SCRIPT":
                    hash_ = HASH if words[2] == SCRIPT.encode() else OTHER
                    writer.write(b"$40\r\n%b\r\n" % hash_)
                case b"SUBSCRIBE":
                    writer.write(b"*3\r\n$9\r\nsubscribe\r\n$1\r\nx\r\n:1\r\n")
                case b"EVALSHA" if words[1] != HASH:
                    writer.write(b"-ERR not known here\r\n")
                case b"EVALSHA":
                    messages += 1
                    writer.write(first if messages == 1 else text)

    return behaviour


ANSWERS = {
    "LOADING": (b"-LOADING Redis is loading the dataset in memory\r\n", "loading the dataset"),
    "MISCONF": (b"-MISCONF Redis is configured to save RDB snapshots\r\n", "MISCONF"),
    "MASTERDOWN": (b"-MASTERDOWN Link with MASTER is down\r\n", "MasterDown|MASTERDOWN"),
    "CLUSTERDOWN": (b"-CLUSTERDOWN The cluster is down\r\n", "(?i)clusterdown"),
    "MOVED": (b"-MOVED 1 127.0.0.1:1\r\n", "(?i)moved"),
    "NOSCRIPT for ever": (b"-NOSCRIPT No matching script\r\n", "(?i)noscript"),
    "an error with control characters": (b"-ERR \x1b[2J\x00\xff\r\n", "ERR|ResponseError"),
    "garbage": (b"\xff\x00 what\r\n", "Protocol|InvalidResponse"),
    "no bulk string": (b":5\r\n", "cannot be read"),
    "nil": (b"$-1\r\n", "cannot be read"),
    "OK": (b"+OK\r\n", "cannot be read"),
    "nested arrays": (b"*1\r\n" * 20_000, "InvalidResponse|Recursion"),
    "an endless line": (b"+" + b"x" * 1_000_000, "InvalidResponse|too long|exceed|limit"),
    "a huge bulk string": (b"$2000000000\r\n" + b"x" * 1_000_000, "too long"),
    "a negative length": (b"$-7\r\n", "too long|InvalidResponse|cannot be read"),
    "an answer to another question": (answer(False, 1, 0, 0, 0, 0, [0, 0] * 3), "cannot be read"),
    "MessagePack of another kind": (answer(1, 2, 3), "cannot be read"),
    "numbers below zero": (answer(False, 0, -1, 0, 0, 0, [0, 0]), "cannot be read"),
    "a huge number": (answer(False, 1, 1 << 60, 0, 0, 0, [0, 0]), "cannot be read"),
    "half an answer, then the end": (b"$9\r\nabc", "no answer within 200 ms"),
    "nothing": (b"", "no answer within 200 ms"),
}


@pytest.mark.parametrize("name", ANSWERS)
async def test_an_invalid_answer_causes_one_clear_line_and_the_nodes_own_limits_apply(
    caplog: pytest.LogCaptureFixture, name: str
) -> None:
    text, reason = ANSWERS[name]
    async with raw_server(redis_that_answers(text)) as port:
        async with nodes(1, f"redis://127.0.0.1:{port}", **OPTIONS) as servers:
            assert fleet(servers[0]).state is State.UP
            began = time.monotonic()
            admitted, refused = await arrivals(servers, 7)
            assert time.monotonic() - began < 5
            assert (len(admitted), len(refused)) == (5, 2)
            await until(lambda: outage_lines(caplog))
            (line,) = outage_lines(caplog)
            assert re.search(reason, line), line
            assert line.isprintable()
            await close_all(admitted)


@pytest.mark.parametrize("behaviour", [silence, close], ids=["says nothing", "closes"])
async def test_a_redis_that_accepts_and_never_answers_delays_a_start_by_a_second_at_most(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, behaviour: Behaviour
) -> None:
    monkeypatch.setattr("smtpd_fork.fleet.messenger.OPEN_SECONDS", 1.5)
    async with raw_server(behaviour) as port:
        began = time.monotonic()
        async with nodes(1, f"redis://127.0.0.1:{port}", **OPTIONS) as servers:
            assert time.monotonic() - began < 3
            admitted, _ = await arrivals(servers, 7)
            assert len(admitted) == 5
            assert len(outage_lines(caplog)) == 1
            await close_all(admitted)


async def test_an_endless_answer_is_cut_off_at_the_limit(caplog: pytest.LogCaptureFixture) -> None:
    endless = says(b"$40\r\n", endless=b"x" * 65536)
    async with raw_server(endless) as port:
        tracemalloc.start()
        try:
            async with nodes(1, f"redis://127.0.0.1:{port}", **OPTIONS):
                await until(lambda: outage_lines(caplog))
                _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 30_000_000


async def test_endless_hints_do_not_block_the_loop(caplog: pytest.LogCaptureFixture) -> None:
    subscribed = asyncio.Event()
    hint = b"*3\r\n$7\r\nmessage\r\n$1\r\nx\r\n$7\r\nwaiting\r\n" * 100

    async def behaviour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            if b"SUBSCRIBE" in data:
                writer.write(b"*3\r\n$9\r\nsubscribe\r\n$1\r\nx\r\n:1\r\n")
                subscribed.set()
                while True:
                    writer.write(hint)
                    await writer.drain()
                    await asyncio.sleep(0)
            writer.write(b"$40\r\n%b\r\n" % HASH if b"SCRIPT" in data else GOOD)

    async with raw_server(behaviour) as port:
        options = {**OPTIONS, "max_from_ip": "local:5"}
        async with nodes(1, f"redis://127.0.0.1:{port}", **options) as servers:
            await subscribed.wait()
            admitted, _ = await arrivals(servers, 7)
            assert len(admitted) == 5
            await close_all(admitted)


async def test_a_node_subscribes_to_hints_again_after_their_connection_was_lost(
    redis: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smtpd_fork.fleet.messenger.HINTS_SECONDS", (0.01, 0.05))
    async with nodes(2, f"unix:{redis.path}", **OPTIONS) as servers:
        with redis.client() as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "PUBSUB")
            await until(lambda: client.pubsub_numsub("{smtpd-fork}:1:hints")[0][1] == 2)
        await in_state(servers, State.UP)
        assert outage_lines(caplog) == []
