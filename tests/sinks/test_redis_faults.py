"""Redis with insufficient durability, refusals, garbage, outages and recovery."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from support.killing import kill_server_under_load
from support.mail import large, mail
from support.ports import free_port
from support.raw_server import close, raw_server, reset, says, silence
from support.redis_server import DURABLE, RedisServer
from support.sinks import DELIVERED, DOWN, NOT_TAKEN, closing

from smtpd_fork.errors import CannotCreateError
from smtpd_fork.sinks.redis import Redis, assess

if TYPE_CHECKING:
    from support.raw_server import Behaviour

peers = pytest.mark.peers


# -- refusals ----------------------------------------------------------------------------------


def set_(server: RedisServer, **options: str) -> None:
    with server.client() as client:
        for name, value in options.items():
            client.config_set(name.replace("_", "-"), value)


@peers
async def test_the_client_gets_452_while_redis_is_out_of_memory() -> None:
    with RedisServer(*DURABLE) as server:
        async with closing(Redis(server.url)) as sink:
            set_(server, maxmemory="1")
            assert str(await sink.deliver(mail())).startswith("452 4.3.1 ")
            set_(server, maxmemory="0")
            assert await sink.deliver(mail()) == DELIVERED
        assert len(server.entries()) == 1


@peers
async def test_a_read_only_replica_counts_as_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smtpd_fork.sinks.server_sink.RETRY_SECONDS", 0.01)
    with RedisServer() as server:
        async with closing(Redis(server.url)) as sink:
            with server.client() as client:
                client.replicaof("127.0.0.1", "1")
                assert await sink.deliver(mail()) == DOWN
                assert "READONLY" in sink.status.reason or "read only" in sink.status.reason
                client.replicaof("no", "one")
            async with asyncio.timeout(10):
                while await sink.deliver(mail()) != DELIVERED:
                    await asyncio.sleep(0.01)


@peers
async def test_a_message_that_exceeds_the_limit_of_redis_is_refused_permanently() -> None:
    with RedisServer("--proto-max-bulk-len", "1mb") as server:
        async with closing(Redis(server.url)) as sink:
            assert str(await sink.deliver(mail(large(2_000_000)))).startswith("552 5.3.4 ")
            assert await sink.deliver(mail(large(900_000))) == DELIVERED


@peers
async def test_a_key_of_another_type_loses_no_message(redis_server: RedisServer) -> None:
    with redis_server.client() as client:
        client.set("mail", "x")
    async with closing(Redis(redis_server.url)) as sink:
        assert await sink.deliver(mail()) == NOT_TAKEN
        with redis_server.client() as client:
            client.delete("mail")
        assert await sink.deliver(mail()) == DELIVERED


# -- durability --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "require", "weak", "warning"),
    [
        ({"appendonly": "no"}, "nothing", "", "a crash of Redis loses"),
        ({"appendonly": "no"}, "aof", "appendonly is off", "a crash of Redis loses"),
        ({"appendonly": "yes", "appendfsync": "everysec"}, "aof", "", "may lose the last"),
        ({"appendonly": "yes", "appendfsync": "everysec"}, "fsync", "is everysec", "may lose"),
        ({"appendonly": "yes", "appendfsync": "always"}, "fsync", "", None),
        ({"appendonly": "no", "appendfsync": "always"}, "fsync", "appendonly is off", "loses"),
        ({}, "nothing", "", "CONFIG GET is not permitted"),
        ({}, "aof", "CONFIG GET is not permitted", "CONFIG GET is not permitted"),
    ],
)
def test_the_settings_of_redis_are_assessed(
    found: dict[str, str], require: str, weak: str, warning: str | None
) -> None:
    reason, warnings = assess(found, require)
    assert weak in reason
    assert bool(weak) == bool(reason)
    assert [warning in each for each in warnings] == [True] if warning else warnings == []


def test_a_redis_that_may_remove_the_stream_causes_a_warning() -> None:
    found = {"appendonly": "yes", "appendfsync": "always", "maxmemory": "1000"}
    assert assess({**found, "maxmemory-policy": "noeviction"}, "fsync") == ("", [])
    (warning,) = assess({**found, "maxmemory-policy": "allkeys-lru"}, "fsync")[1]
    assert warning == "maxmemory-policy is allkeys-lru: Redis may remove the stream"


@peers
def test_the_start_warns_or_fails_as_configured(caplog: pytest.LogCaptureFixture) -> None:
    with RedisServer() as server:
        Redis(server.url).prepare()
        assert "appendonly is off: a crash of Redis loses messages" in caplog.text
        with pytest.raises(CannotCreateError, match=r"appendonly is off.*require is aof"):
            Redis(server.url, require="aof").check()
        with server.client() as client:
            client.execute_command("ACL", "SETUSER", "mail", "on", ">pw", "~*", "+@all", "-config")
        Redis(server.url, username="mail", password="pw").prepare()
        assert "CONFIG GET is not permitted" in caplog.text
        with pytest.raises(CannotCreateError, match="CONFIG GET is not permitted"):
            Redis(server.url, username="mail", password="pw", require="fsync").prepare()


def test_the_start_succeeds_while_redis_is_down(caplog: pytest.LogCaptureFixture) -> None:
    Redis(f"redis://127.0.0.1:{free_port('127.0.0.1')}", require="fsync").prepare()
    assert "messages get 451 until it answers" in caplog.text


@peers
async def test_redis_with_insufficient_durability_gets_no_message() -> None:
    with RedisServer() as server:
        async with closing(Redis(server.url, require="aof")) as sink:
            assert await sink.deliver(mail()) == DOWN
            assert "require is aof" in sink.status.reason
        assert server.entries() == []


# -- faults ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "behaviour",
    [
        silence,
        reset,
        close,
        says(b"\0\xff garbage\r\n"),
        says(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        says(b"$abc\r\n"),
        says(b"$-7\r\n"),
        says(b"$1000000000\r\n", endless=b"x" * 65536),
        says(b"*1000000000\r\n", endless=b":1\r\n" * 1000),
        says(b"", endless=b"*1\r\n" * 1000),
        says(b"+", endless=b"x" * 4096),
        says(b"+x\r\n" * 100_000),
        says(b"-LOADING Redis is loading the dataset in memory\r\n"),
        says(b"-NOAUTH Authentication required.\r\n"),
        says(b"-MISCONF Redis is configured to save RDB snapshots\r\n"),
    ],
    ids=[
        *("silence", "reset", "close", "garbage", "http", "no-length", "bad-length", "1-gb"),
        *("endless-array", "deep", "endless-line", "unasked", "loading", "no-auth", "misconf"),
    ],
)
async def test_a_server_that_does_not_speak_redis_is_down(behaviour: Behaviour) -> None:
    async with raw_server(behaviour) as port:
        async with closing(Redis(f"redis://127.0.0.1:{port}", timeout=0.3)) as sink:
            assert await sink.deliver(mail()) == DOWN
            assert sink.status.down_since is not None


@peers
async def test_redis_is_used_again_when_it_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smtpd_fork.sinks.server_sink.RETRY_SECONDS", 0.05)
    with RedisServer(*DURABLE) as server:
        async with closing(Redis(server.url)) as sink:
            assert await sink.deliver(mail(b"1")) == DELIVERED
            server.kill()
            assert await sink.deliver(mail(b"2")) == DOWN
            many = [sink.deliver(mail(b"2")) for _ in range(100)]
            assert set(await asyncio.gather(*many)) == {DOWN}
            server.start()
            async with asyncio.timeout(10):
                while await sink.deliver(mail(b"2")) != DELIVERED:
                    await asyncio.sleep(0.01)
            assert sink.status.down_since is None
        assert len(server.entries()) == 2


@peers
async def test_each_message_is_added_once_if_redis_is_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("smtpd_fork.sinks.server_sink.RETRY_SECONDS", 0.01)
    with RedisServer(*DURABLE) as server:
        async with closing(Redis(server.url, require="fsync")) as sink:
            contents = await kill_server_under_load(sink, server)
        found = [entry[b"content"] for entry in server.entries()]
    assert sorted(found) == sorted(b"".join(mail(each).relayed()) for each in contents)


@peers
async def test_a_cancelled_message_does_not_affect_other_messages(
    redis_server: RedisServer,
) -> None:
    async with closing(Redis(redis_server.url, connections=1)) as sink:
        assert await sink.deliver(mail(b"1")) == DELIVERED
        with redis_server.client() as client:
            client.client_pause(300)
        task = asyncio.create_task(sink.deliver(mail(b"2")))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        for number in range(3, 6):
            assert await sink.deliver(mail(b"%d" % number)) == DELIVERED
    keys = [entry[b"key"].decode() for entry in redis_server.entries()]
    assert {mail(b"%d" % number).key for number in (1, 3, 4, 5)} <= set(keys)
    assert len(keys) == len(set(keys))
