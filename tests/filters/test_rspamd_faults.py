"""The filter rspamd while rspamd is down or slow, or sends invalid answers: nothing leaks."""

from __future__ import annotations

import asyncio
import email
import threading
import time
import tracemalloc
from email.policy import SMTP
from typing import TYPE_CHECKING, Any

import pytest
from blockbuster import BlockBuster
from support.client import Client
from support.handlers import Collect
from support.mail import large
from support.ports import free_port
from support.raw_server import close, raw_server, reset, says, silence
from support.rspamd import MESSAGE, TestRspamd, door, outcome, rspamd_server, send
from support.server import serve, until
from support.sinks import open_sockets

from smtpd_fork.filters import Rspamd
from smtpd_fork.hops.rspamd import servers
from smtpd_fork.hops.rspamd.edits import Changes, changes_of

if TYPE_CHECKING:
    from support.raw_server import Behaviour

REPLIES = {
    "defer": "451 4.7.1 Service unavailable, try again later",
    "refuse": "554 5.3.0 The message cannot be checked",
    "accept": "250 2.0.0 Ok",
}


@pytest.fixture(autouse=True)
def _short_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the timeout of the check at the start."""
    monkeypatch.setattr("smtpd_fork.hops.probe.PROBE_SECONDS", 0.1)


async def through(urls: list[str], **keys: Any) -> str:
    """Send a message through the filter; return the reply. Check that nothing is left."""
    sockets, tasks = open_sockets(), asyncio.all_tasks()
    async with (
        serve([Rspamd(urls, **keys), Collect()]) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.greet()
        reply = await send(client)
    await until(lambda: open_sockets() <= sockets)
    await until(lambda: asyncio.all_tasks() <= tasks)
    return f"{reply.code} {reply.text}"


@pytest.mark.parametrize("when_down", REPLIES)
async def test_when_down_decides_while_rspamd_is_down(
    when_down: str, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"http://127.0.0.1:{free_port('127.0.0.1')}"
    assert await through([url], when_down=when_down) == REPLIES[when_down]
    assert f"rspamd {url} is down: " in caplog.text
    (line,) = [each for each in caplog.messages if "has failed" in each]
    assert "127.0.0.1:" in line
    assert line.endswith(f"; {when_down}")


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"

FAULTS: dict[str, Behaviour] = {
    "silence": silence,
    "reset": reset,
    "close": close,
    "garbage": says(b"\0\xff" * 999),
    "endless garbage": says(b"", endless=b"x" * 65536),
    "endless header": says(b"HTTP/1.1 200 OK\r\n", endless=b"X: y\r\n" * 999),
    "endless answer": says(HEAD.replace(b"100", b"99999999999"), endless=b" " * 65536),
    "endless chunks": says(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        endless=b"400\r\n" + b" " * 1024 + b"\r\n",
    ),
    "cut off": says(HEAD + b"{"),
    "half an answer": says(HEAD + b'{"action":"no action"}'),
    "no content": says(b"HTTP/1.1 204 No Content\r\n\r\n"),
    "redirect": says(b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n"),
    "html": says(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>"),
    "error": says(b'HTTP/1.1 500 No\r\nContent-Length: 15\r\n\r\n{"error":"oops"}'),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
async def test_any_other_answer_defers_the_message_or_leaves_it_unchecked(fault: str) -> None:
    async with raw_server(FAULTS[fault]) as port:
        url = f"http://127.0.0.1:{port}"
        assert await through([url], timeout=0.3) == REPLIES["defer"]


async def test_a_client_cannot_make_the_answer_too_long_by_urls() -> None:
    addresses = [f"{'a' * 64}@{number:0255}" for number in range(10_240)]
    answer = {"action": "reject", "urls": [], "emails": addresses}
    assert (await outcome(answer, when_down="accept"))[0].startswith("554")


@pytest.mark.parametrize("size", [servers.LONGEST_ANSWER - 100, 100_000_000])
async def test_an_answer_of_100_mb_is_aborted(size: int) -> None:
    answer = b'{"action":"no action","x":"' + b"y" * size + b'"}'
    tracemalloc.start()
    try:
        if size < servers.LONGEST_ANSWER:
            assert (await outcome(answer))[0].startswith("250")
            return
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer)
        async with raw_server(says(head, endless=b"y" * 65536)) as port:
            assert await through([f"http://127.0.0.1:{port}"]) == REPLIES["defer"]
        assert tracemalloc.get_traced_memory()[1] < len(answer) + 10_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "answer",
    [
        b"", b"[]", b"{}", b'{"action":' + b"[" * 100_000, b'{"action":5}',
        b'{"action":"no action","milter":{"add_rcpt":["b@x>\\r\\nDATA"]}}',
    ],
)  # fmt: skip
async def test_an_invalid_answer_is_a_failure(answer: bytes) -> None:
    said, stored = await outcome(answer)
    assert (said, stored) == (REPLIES["defer"], [])


async def test_the_log_reports_a_wrong_password_without_showing_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rspamd = TestRspamd(password="right")
    async with door(rspamd) as (client, _):
        assert (await send(client)).code == 451
    assert "it answers 403 (wrong password?)" in caplog.text
    async with door(rspamd, password="right") as (client, _):
        assert (await send(client)).code == 250
    assert "right" not in caplog.text


async def test_an_idle_connection_that_is_closed_loses_no_message() -> None:
    answer = b'HTTP/1.1 200 OK\r\nContent-Length: 22\r\n\r\n{"action":"no action"}'
    connections = 0

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split()[0]))
        writer.write(answer)
        await reader.read(1)  # of the next request

    async with raw_server(once) as port:
        web = servers.Servers(
            [f"http://127.0.0.1:{port}"], password=None, seconds=9.0, connections=9, ca_file=None
        )
        for number in range(3):
            assert await web.ask([], b"x" * number) == answer[-22:]
        await web.close()
    assert connections == 3


# -- several servers ---------------------------------------------------------------------------


async def test_the_next_server_is_used_while_the_first_is_down(
    caplog: pytest.LogCaptureFixture,
) -> None:
    down = f"http://127.0.0.1:{free_port('127.0.0.1')}"
    async with rspamd_server() as second:
        assert (await through([down, second.url])).startswith("250")
    assert len(second.messages) == 1
    assert "has failed" not in caplog.text


async def test_a_failed_server_is_skipped_until_one_message_succeeds(
    caplog: pytest.LogCaptureFixture,
) -> None:
    port = free_port("127.0.0.1")
    url = f"http://127.0.0.1:{port}"
    async with rspamd_server() as second:
        judge = Rspamd([url, second.url])
        await judge_by_turns(judge, port)
    assert len(second.messages) == 2
    assert caplog.text.count(f"rspamd {url} is down: ") == 1
    assert caplog.text.count(f"rspamd {url} is up again, after ") == 1


async def judge_by_turns(judge: Rspamd, port: int) -> None:
    async with (
        serve([judge, Collect()]) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.greet()
        await send(client)
        async with rspamd_server(port=port) as first:
            await send(client)
            assert len(first.messages) == 0  # it is skipped for a second
            judge._servers._servers[0]._next_attempt = 0.0
            await send(client)
            await send(client)
            assert len(first.messages) == 2


async def test_one_message_at_a_time_tries_a_server_that_is_down() -> None:
    waiting, go_on = asyncio.Event(), asyncio.Event()

    async def before() -> None:
        waiting.set()
        await go_on.wait()

    rspamd = TestRspamd(before=before)
    async with rspamd_server(rspamd):
        asked = servers.Servers(
            [rspamd.url], password=None, seconds=20.0, connections=9, ca_file=None
        )
        (server,) = asked._servers
        server._outage.begin("it was")
        trying = asyncio.create_task(asked.ask([], b""))
        await waiting.wait()
        with pytest.raises(servers.RspamdDownError, match="it was"):
            await asked.ask([], b"")
        go_on.set()
        await trying
        await asked.ask([], b"")
        assert len(rspamd.messages) == 2
        await asked.close()


def test_the_time_that_a_server_is_skipped_doubles_up_to_half_a_minute() -> None:
    asked = servers.Servers(
        ["http://127.0.0.1:1"], password=None, seconds=1.0, connections=1, ca_file=None
    )
    (server,) = asked._servers
    pauses = []
    for _ in range(7):
        server._failed("x", time.monotonic())
        pauses.append(server._pause)
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


async def test_a_message_that_fails_does_not_disable_the_server_for_others() -> None:
    rspamd = TestRspamd()

    async def hang() -> None:
        if b"bad" in rspamd.messages[-1][1]:
            await asyncio.sleep(60)

    rspamd.before = hang
    async with door(rspamd, timeout=0.5) as (client, _):
        bad = asyncio.create_task(send(client, text=f"{MESSAGE}bad\r\n"))
        await until(lambda: rspamd.messages)
        async with await Client.to(client.writer.get_extra_info("peername")[:2]) as other:
            await other.greet()
            assert (await send(other)).code == 250
            assert (await bad).code == 451
            assert (await send(other)).code == 250


# -- large messages, and disconnected clients --------------------------------------------------


async def test_a_large_message_is_checked_without_blocking_the_event_loop() -> None:
    content = large(25_000_000)
    rspamd, kept = TestRspamd({"action": "add header"}), Collect()
    async with rspamd_server(rspamd), serve([Rspamd([rspamd.url]), kept]) as server:
        async with await Client.to(server.addresses[0]) as client:
            await client.greet()
            await client.say("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>", "DATA")
            blockbuster = BlockBuster()
            blockbuster.activate()
            try:
                client.writer.write(content + b"\r\n.\r\n")
                assert (await client.reply()).code == 250
            finally:
                blockbuster.deactivate()
    assert rspamd.messages[0][1] == content + b"\r\n"
    assert kept.messages[0] == content.replace(b"\r\n\r\n", b"\r\nX-Spam: Yes\r\n\r\n", 1) + b"\r\n"


@pytest.mark.parametrize("length", [10, 50_000])
async def test_a_long_subject_is_encoded_in_a_thread(
    length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []

    def noted(*arguments: Any, **keys: Any) -> Changes:
        threads.append(threading.current_thread())
        return changes_of(*arguments, **keys)

    monkeypatch.setattr("smtpd_fork.filters.rspamd.changes_of", noted)
    subject = "\xfc" * length
    said, stored = await outcome({"action": "rewrite subject", "subject": subject})
    assert said.startswith("250")
    assert email.message_from_bytes(stored[0], policy=SMTP)["Subject"] == subject
    assert [each is threading.main_thread() for each in threads] == [length == 10]


async def test_a_session_that_ends_during_a_request_leaves_nothing_behind() -> None:
    started = asyncio.Event()

    async def behaviour(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read(1)
        started.set()
        while await reader.read(1 << 16):
            pass

    sockets, tasks = open_sockets(), asyncio.all_tasks()
    async with raw_server(behaviour) as port:
        started.clear()
        filters = [Rspamd([f"http://127.0.0.1:{port}"]), Collect()]
        async with serve(filters, shutdown_timeout=0.1) as server:
            started.clear()
            async with await Client.to(server.addresses[0]) as client:
                await client.greet()
                sending = asyncio.create_task(send(client))
                await started.wait()
                await server.stop()
                await asyncio.wait([sending])
                sending.exception()
    await until(lambda: open_sockets() <= sockets)
    await until(lambda: asyncio.all_tasks() <= tasks)
