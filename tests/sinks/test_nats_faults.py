"""NATS with a stream that loses messages, and a server that sends garbage, is down or returns."""

from __future__ import annotations

import asyncio
from signal import SIGCONT, SIGSTOP
from typing import TYPE_CHECKING

import pytest
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig
from support.killing import kill_server_under_load
from support.mail import mail
from support.nats_server import NatsServer, run
from support.peers import proc
from support.ports import free_port
from support.raw_server import close, raw_server, reset, says, silence
from support.server import until
from support.sinks import DELIVERED, DOWN, NOT_TAKEN, closing

from smtpd_fork.errors import CannotCreateError
from smtpd_fork.sinks.nats import Nats, assess

if TYPE_CHECKING:
    from support.raw_server import Behaviour

peers = pytest.mark.peers

GOOD = StreamConfig(
    storage=StorageType.FILE, retention=RetentionPolicy.WORK_QUEUE, duplicate_window=86400
)


@pytest.mark.parametrize(
    ("changes", "require", "weak", "warning"),
    [
        ({}, "file", "", None),
        ({"storage": StorageType.MEMORY}, "file", "is in memory", None),
        ({"storage": StorageType.MEMORY}, "nothing", "", "is in memory: a crash of NATS loses"),
        ({"no_ack": True}, "nothing", "does not acknowledge", None),
        ({"duplicate_window": 120}, "file", "", "has a duplicate window of 120 s"),
        ({"max_bytes": 1000}, "file", "", "discards old messages"),
        ({"max_age": 3600}, "file", "", "discards old messages"),
        ({"max_bytes": 1000, "discard": DiscardPolicy.NEW}, "file", "", None),
    ],
)
def test_the_settings_of_a_stream_are_assessed(
    changes: dict[str, object], require: str, weak: str, warning: str | None
) -> None:
    reason, warnings = assess(GOOD.evolve(**changes), require)
    assert weak in reason
    assert bool(weak) == bool(reason)
    assert [warning in each for each in warnings] == [True] if warning else warnings == []


@peers
def test_the_start_warns_or_refuses(
    nats_server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    run(nats_server.new_stream(subjects=["other"]))
    with pytest.raises(CannotCreateError, match="no stream has the subject mail; create one"):
        Nats(nats_server.url).prepare()
    run(nats_server.new_stream(storage="memory", duplicate_window=60))
    with pytest.raises(CannotCreateError, match=r"the stream MAIL is in memory.*require is file"):
        Nats(nats_server.url).check()
    with pytest.raises(CannotCreateError, match="the subject belongs to the stream MAIL"):
        Nats(nats_server.url, stream="POST", require="nothing").check()
    Nats(nats_server.url, stream="MAIL", require="nothing").check()
    assert "is in memory: a crash of NATS loses messages" in caplog.text
    assert "has a duplicate window of 60 s" in caplog.text


@peers
def test_a_server_without_jetstream_is_an_error(caplog: pytest.LogCaptureFixture) -> None:
    with NatsServer("jetstream: false") as server:
        Nats(server.url).prepare()
    assert "JetStream" in caplog.text


def test_the_start_succeeds_while_nats_is_down(caplog: pytest.LogCaptureFixture) -> None:
    Nats(f"nats://127.0.0.1:{free_port('127.0.0.1')}").prepare()
    assert "messages get 451 until it answers" in caplog.text
    assert "Connect" in caplog.text


@peers
async def test_a_full_stream_refuses_messages_and_loses_none(nats_server: NatsServer) -> None:
    await nats_server.new_stream(max_msgs=1, discard="new")
    async with closing(Nats(nats_server.url)) as sink:
        assert await sink.deliver(mail(b"1")) == DELIVERED
        assert await sink.deliver(mail(b"2")) == NOT_TAKEN
        await nats_server.ask(lambda js: js.purge_stream("MAIL"))
        assert await sink.deliver(mail(b"2")) == DELIVERED


@peers
async def test_a_deleted_stream_is_used_again_when_it_is_recreated(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smtpd_fork.sinks.server_sink.RETRY_SECONDS", 0.01)
    await nats_server.new_stream()
    async with closing(Nats(nats_server.url)) as sink:
        assert await sink.deliver(mail(b"1")) == DELIVERED
        await nats_server.ask(lambda js: js.delete_stream("MAIL"))
        assert await sink.deliver(mail(b"2")) == DOWN
        await nats_server.add_stream()
        await _until_delivered(sink)


async def _until_delivered(sink: Nats) -> None:
    async with asyncio.timeout(10):
        while await sink.deliver(mail(b"2")) != DELIVERED:
            await asyncio.sleep(0.01)


_INFO = b'INFO {"max_payload":1000000,"headers":true}\r\n'
_PONG = _INFO + b"PONG\r\n"


@pytest.mark.parametrize(
    "behaviour",
    [
        silence,
        reset,
        close,
        says(b"\0\xff garbage\r\n"),
        says(b"INFO {}\r\n"),
        says(b"INFO []\r\n"),
        says(b"INFO {" + b" " * 100_000),
        says(b"INFO {", endless=b" " * 4096),
        says(_INFO),
        says(_INFO + b"-ERR 'no'\r\n"),
        says(_PONG),
        says(_PONG + b"\0\xff garbage\r\n"),
        says(_PONG + b"INFO {]\r\n"),
        says(_PONG + b"-ERR 'Stale Connection'\r\n"),
        says(_PONG + b"MSG a 1 1000000000\r\n", endless=b"x" * 65536),
        says(_PONG, endless=b"x" * 65536),
        says(_PONG, endless=b"PING\r\n" * 1000),
        says(_PONG, endless=b"MSG _INBOX.x 1 2\r\n{}\r\n" * 100),
    ],
    ids=[
        *("silence", "reset", "close", "garbage", "empty-info", "bad-info", "long-info"),
        *("endless-info", "no-pong", "error", "no-answer", "garbage-later", "bad-info-later"),
        *("stale", "1-gb", "endless-line", "endless-ping", "unasked"),
    ],
)
async def test_a_server_that_does_not_speak_nats_is_down(behaviour: Behaviour) -> None:
    async def at_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Run the behaviour without waiting for data, because the server sends first."""
        heard = asyncio.StreamReader()
        heard.feed_data(b"x")
        task = asyncio.ensure_future(behaviour(heard, writer))
        try:
            while await reader.read(1 << 16):
                pass
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async with raw_server(
        at_once if behaviour not in {silence, reset, close} else behaviour
    ) as port:
        async with closing(Nats(f"nats://127.0.0.1:{port}", timeout=0.2)) as sink:
            assert await sink.deliver(mail()) == DOWN
            assert sink.status.down_since is not None


@peers
async def test_nats_is_used_again_when_it_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smtpd_fork.sinks.server_sink.RETRY_SECONDS", 0.05)
    with NatsServer() as server:
        await server.add_stream()
        async with closing(Nats(server.url)) as sink:
            assert await sink.deliver(mail(b"1")) == DELIVERED
            server.kill()
            assert await sink.deliver(mail(b"2")) == DOWN
            many = [sink.deliver(mail(b"2")) for _ in range(100)]
            assert set(await asyncio.gather(*many)) == {DOWN}
            server.start()
            await _until_delivered(sink)
            assert sink.status.down_since is None
        assert len(await server.messages()) == 2


@peers
async def test_each_message_is_stored_once_if_nats_is_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("smtpd_fork.sinks.server_sink.RETRY_SECONDS", 0.01)
    with NatsServer() as server:
        await server.add_stream()
        async with closing(Nats(server.url)) as sink:
            contents = await kill_server_under_load(sink, server)
        found = [each.data for each in await server.messages()]
    assert sorted(found) == sorted(b"".join(mail(each).relayed()) for each in contents)


@peers
async def test_a_server_that_hangs_gets_no_250_and_is_used_again_when_it_continues(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smtpd_fork.sinks.server_sink.RETRY_SECONDS", 0.05)
    await nats_server.new_stream()
    async with closing(Nats(nats_server.url, timeout=0.3)) as sink:
        assert await sink.deliver(mail(b"1")) == DELIVERED
        nats_server.process.send_signal(SIGSTOP)
        state = proc(nats_server.process.pid, "stat")
        await until(lambda: state.read_text().rpartition(")")[2].split()[0] == "T")
        try:
            assert await sink.deliver(mail(b"2")) == DOWN
            assert sink.status.reason == "no answer within 0.3 s"
        finally:
            nats_server.process.send_signal(SIGCONT)
        await _until_delivered(sink)
    assert len(await nats_server.messages()) == 2
