"""Redis: each message is added once to a stream."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from blockbuster import BlockBuster
from hypothesis import HealthCheck, given, settings
from support.aiosmtpd_controller import client_of_aiosmtpd
from support.client import Client
from support.daemon import on_both_loops
from support.killing import assert_once, deliver_and_kill
from support.mail import CONTENT, contents, large, mail
from support.raw_server import raw_server
from support.redis_server import RedisServer
from support.server import serve
from support.sinks import DELIVERED, DOWN, closing

from smtpd_fork.setting_types import SettingError
from smtpd_fork.sinks.redis import Redis

if TYPE_CHECKING:
    from pathlib import Path

    from support.tls import Certificates

peers = pytest.mark.peers


# -- entries -----------------------------------------------------------------------------------


@peers
async def test_a_worker_finds_the_message_and_its_envelope(redis_server: RedisServer) -> None:
    async with closing(Redis(redis_server.url, require="fsync")) as sink:
        async with serve(sink) as smtp, await Client.to(smtp.addresses[0]) as client:
            await client.greet("client.example")
            reply = await client.deliver("Subject: x\r\n\r\n..dot\r\n")
    assert reply.code == 250
    (entry,) = redis_server.entries()
    assert set(entry) == {b"version", b"key", b"envelope", b"content"}
    assert entry[b"version"] == b"1"
    envelope = json.loads(entry[b"envelope"])
    assert reply.text == f"2.0.0 Ok: queued as {envelope['id']}"
    assert envelope["recipients"] == ["b@example.com"]
    assert envelope["key"].encode() == entry[b"key"]
    assert entry[b"content"].startswith(b"Received: from client.example ([127.0.0.1])\r\n")
    assert entry[b"content"].endswith(b"\r\nSubject: x\r\n\r\n.dot\r\n")


@peers
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=contents)
async def test_every_byte_arrives(redis_server: RedisServer, content: bytes) -> None:
    each = mail(content)
    async with closing(Redis(redis_server.url)) as sink:
        assert await sink.deliver(each) == DELIVERED
    found = {entry[b"key"].decode(): entry[b"content"] for entry in redis_server.entries()}
    assert found[each.key] == b"".join(each.relayed())


@peers
async def test_a_message_that_is_sent_again_is_added_once_by_default(
    redis_server: RedisServer,
) -> None:
    async with closing(Redis(redis_server.url)) as sink:
        assert [await sink.deliver(mail()) for _ in range(3)] == [DELIVERED] * 3
    assert len(redis_server.entries()) == 1
    with redis_server.client() as client:
        assert 86000 < int(str(client.ttl(f"mail:seen:{mail().key}"))) <= 86400
    async with closing(Redis(redis_server.url, remember=0)) as sink:
        assert [await sink.deliver(mail()) for _ in range(2)] == [DELIVERED] * 2
    assert len(redis_server.entries()) == 3


@peers
async def test_after_a_lost_answer_the_message_is_not_added_again(
    redis_server: RedisServer,
) -> None:
    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward all data, but reset the connection before the answer to EVAL."""
        up_reader, up_writer = await asyncio.open_unix_connection(str(redis_server.path))
        try:
            while text := await reader.read(1 << 16):
                up_writer.write(text)
                answer = await up_reader.read(1 << 16)
                if b"XADD" in text:
                    return
                writer.write(answer)
        finally:
            up_writer.close()

    async with raw_server(proxy) as port:
        async with closing(Redis(f"redis://127.0.0.1:{port}")) as sink:
            assert await sink.deliver(mail()) == DOWN
    assert len(redis_server.entries()) == 1
    async with closing(Redis(redis_server.url)) as sink:
        assert await sink.deliver(mail()) == DELIVERED
    assert len(redis_server.entries()) == 1


@peers
async def test_the_stream_keeps_about_as_many_entries_as_it_may(redis_server: RedisServer) -> None:
    async with closing(Redis(redis_server.url, maxlen=10, stream="few")) as sink:
        for number in range(300):
            await sink.deliver(mail(b"%d" % number))
    assert 10 <= len(redis_server.entries("few")) < 300


@peers
async def test_a_large_message_arrives_without_blocking_the_event_loop(
    redis_server: RedisServer,
) -> None:
    each = mail(large(25_000_000))
    async with closing(Redis(redis_server.url)) as sink:
        blockbuster = BlockBuster()
        blockbuster.activate()
        try:
            assert await sink.deliver(each) == DELIVERED
        finally:
            blockbuster.deactivate()
    assert redis_server.entries()[0][b"content"] == b"".join(each.relayed())


@peers
async def test_the_number_of_connections_is_limited(redis_server: RedisServer) -> None:
    async with closing(Redis(redis_server.url, connections=3)) as sink:
        many = [sink.deliver(mail(b"%d" % number)) for number in range(600)]
        assert set(await asyncio.gather(*many)) == {DELIVERED}
        with redis_server.client() as client:
            names = [each["name"] for each in client.client_list()]
        assert len(names) <= 3 + 1
    assert len(redis_server.entries()) == 600


@peers
async def test_passwords_are_used_and_never_shown(caplog: pytest.LogCaptureFixture) -> None:
    with RedisServer("--requirepass", "hunter2") as server:
        url = f"redis://:hunter2@127.0.0.1:{server.port}/1"
        shown = ""
        for sink in (Redis(server.url, password="hunter2"), Redis(url)):
            async with closing(sink):
                assert await sink.deliver(mail()) == DELIVERED
                shown += f"{sink!r} {sink.destination}"
        for wrong in (Redis(server.url, password="hunter3"), Redis(server.url)):
            async with closing(wrong):
                assert await wrong.deliver(mail()) == DOWN
                shown += f"{wrong!r} {wrong.status}"
    assert "hunter" not in shown + caplog.text


@peers
async def test_tls_is_verified(certificates: Certificates) -> None:
    with RedisServer(certificates=certificates) as server:
        url = f"rediss://127.0.0.1:{server.port}"
        async with closing(Redis(url, ca_file=str(certificates.ca))) as sink:
            assert await sink.deliver(mail()) == DELIVERED
        async with closing(Redis(url)) as sink:
            assert await sink.deliver(mail()) == DOWN
            assert "certificate verify failed" in sink.status.reason


@peers
@on_both_loops
def test_a_killed_daemon_loses_nothing_and_adds_nothing_twice(
    redis_server: RedisServer, tmp_path: Path, loop: str
) -> None:
    handler = f"smtpd_fork.sinks.redis:Redis:{redis_server.url}"
    names = deliver_and_kill("--handler", handler, "--loop", loop, cwd=tmp_path)
    assert_once(names, [entry[b"content"] for entry in redis_server.entries()])


# -- settings, libraries, aiosmtpd -------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "http://:hunter2@x"}, r"url '\*\*\*': write redis://"),
        ({"url": "redis://:hunter2@"}, "write redis://"),
        ({"url": "redis://x/hunter2"}, "write redis://"),
        ({"url": "redis://x/?password=hunter2"}, "write redis://"),
        ({"url": "unix://"}, "write redis://"),
        ({"url": "redis://x:hunter2"}, "write redis://"),
        ({"require": "all"}, "require 'all': expected nothing, aof or fsync"),
    ],
)
def test_a_bad_value_is_an_error_that_shows_no_secret(options: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message) as caught:
        Redis(**{"url": "redis://127.0.0.1", **options})
    assert "hunter2" not in str(caught.value)


@peers
def test_it_runs_under_aiosmtpd(redis_server: RedisServer) -> None:
    with client_of_aiosmtpd(Redis(redis_server.url)) as client:
        client.sendmail("a@example.com", ["b@example.com"], CONTENT)
    assert redis_server.entries()[0][b"content"].endswith(CONTENT)
