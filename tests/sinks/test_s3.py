"""S3: each message is stored once as a complete object."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from blockbuster import BlockBuster
from hypothesis import HealthCheck, given, settings
from support.aiosmtpd_controller import client_of_aiosmtpd
from support.client import Client
from support.daemon import on_both_loops
from support.killing import assert_once, deliver_and_kill
from support.mail import CONTENT, contents, large, mail
from support.ports import free_port
from support.s3_server import ACCESS, S3Server
from support.server import serve
from support.sinks import DELIVERED, closing

from smtpd_fork.errors import CannotCreateError
from smtpd_fork.message import MailClient
from smtpd_fork.setting_types import SettingError
from smtpd_fork.sinks.s3 import S3, metadata

if TYPE_CHECKING:
    from pathlib import Path


def sink_of(server: S3Server, bucket: str = "mail", **options: Any) -> S3:
    return S3(bucket, endpoint=server.url, **{**ACCESS, **options})


async def test_an_object_is_the_message_with_trace_fields_at_the_top(s3_server: S3Server) -> None:
    async with closing(sink_of(s3_server)) as sink:
        async with serve(sink) as smtp, await Client.to(smtp.addresses[0]) as client:
            await client.greet("client.example")
            await client.say("MAIL FROM:<a@example.com>", "RCPT TO:<b@example.com>")
            await client.say("RCPT TO:<c@example.com>", "DATA")
            client.send("Subject: x\r\n\r\n..dot\r\n.\r\n")
            reply = await client.reply()
    assert reply.code == 250
    ((name, (content, facts)),) = s3_server.objects().items()
    assert re.fullmatch(r"\d{4}/\d\d/\d\d/[0-9a-f]{64}\.eml", name)
    assert content.startswith(
        b"Return-Path: <a@example.com>\r\nDelivered-To: b@example.com\r\n"
        b"Delivered-To: c@example.com\r\nReceived: from client.example ([127.0.0.1])\r\n"
    )
    assert content.endswith(b"\r\nSubject: x\r\n\r\n.dot\r\n")
    assert reply.text == f"2.0.0 Ok: queued as {facts['mail-id']}"
    assert facts["mail-version"] == "1"
    assert facts["mail-key"] in name
    assert facts["mail-from"] == "a@example.com"
    assert facts["mail-client"] == "127.0.0.1"


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=contents)
async def test_every_byte_arrives(s3_server: S3Server, content: bytes) -> None:
    s3_server.clear()
    async with closing(sink_of(s3_server)) as sink:
        assert await sink.deliver(mail(content)) == DELIVERED
    ((found, _),) = s3_server.objects().values()
    assert found == b"".join(mail(content).delivered())


async def test_a_message_that_is_sent_again_is_stored_once_and_not_changed(
    s3_server: S3Server,
) -> None:
    first, second = mail(trace=b"Received: one\r\n"), mail(trace=b"Received: two\r\n")
    async with closing(sink_of(s3_server)) as sink:
        assert await sink.deliver(first) == DELIVERED
        assert await sink.deliver(second) == DELIVERED
    ((found, _),) = s3_server.objects().values()
    assert b"Received: one" in found
    async with closing(sink_of(s3_server, overwrite=True)) as sink:
        assert await sink.deliver(second) == DELIVERED
    ((found, _),) = s3_server.objects().values()
    assert b"Received: two" in found


async def test_the_name_of_an_object_is_as_configured(s3_server: S3Server) -> None:
    async with closing(sink_of(s3_server, path="archive/{key}")) as sink:
        assert await sink.deliver(mail()) == DELIVERED
    assert list(s3_server.objects()) == [f"archive/{mail().key}"]


def test_metadata_are_short_printable_ascii_whatever_the_client_says() -> None:
    client = MailClient("", "\r\nX: ü\0" * 100)
    found = metadata(mail(CONTENT, sender="ü" * 500, client=client), "k" * 64)
    assert all(value.isascii() and value.isprintable() for value in found.values())
    assert sum(map(len, [*found, *found.values()])) < 1500


async def test_a_large_message_arrives_without_blocking_the_event_loop(s3_server: S3Server) -> None:
    each = mail(large(25_000_000))
    async with closing(sink_of(s3_server)) as sink:
        blockbuster = BlockBuster()
        blockbuster.activate()
        try:
            assert await sink.deliver(each) == DELIVERED
        finally:
            blockbuster.deactivate()
    ((found, _),) = s3_server.objects().values()
    assert found == b"".join(each.delivered())


async def test_credentials_can_be_taken_from_the_environment(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.url)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    async with closing(S3("mail")) as sink:
        assert await sink.deliver(mail()) == DELIVERED
    assert len(s3_server.objects()) == 1


def test_a_missing_bucket_is_an_error_at_the_start(s3_server: S3Server) -> None:
    sink_of(s3_server).prepare()
    with pytest.raises(CannotCreateError, match=r"the bucket none at 127.*NoSuchBucket"):
        sink_of(s3_server, "none").check()


def test_the_start_succeeds_while_the_store_is_down(caplog: pytest.LogCaptureFixture) -> None:
    sink = S3("mail", endpoint=f"http://127.0.0.1:{free_port('127.0.0.1')}", **ACCESS)
    sink.prepare()
    assert "Connection refused; messages get 451 until it answers" in caplog.text
    sink.prepare()  # the server calls it again, in its event loop
    assert caplog.text.count("messages get 451 until it answers") == 1
    assert "hunter2" not in caplog.text


def test_an_unreadable_ca_file_is_an_error_at_the_start(tmp_path: Path) -> None:
    sink = S3("mail", endpoint="https://127.0.0.1", ca_file=str(tmp_path / "none"), **ACCESS)
    with pytest.raises(CannotCreateError, match="No such file"):
        sink.check()


@pytest.mark.peers
@on_both_loops
def test_a_killed_daemon_loses_nothing_and_stores_nothing_twice(
    s3_server: S3Server, tmp_path: Path, loop: str
) -> None:
    (tmp_path / "archive.py").write_text(
        "from smtpd_fork.sinks.s3 import S3\n"
        f"archive = S3('mail', endpoint={s3_server.url!r}, access_key_id='x', "
        "secret_access_key='x', region='us-east-1', path='{key}')\n"
    )
    names = deliver_and_kill("--handler", "archive:archive", "--loop", loop, cwd=tmp_path)
    assert_once(names, [content for content, _ in s3_server.objects().values()])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bucket": "a/b"}, "bucket 'a/b': expected a name"),
        ({"bucket": ""}, "expected a name"),
        ({"path": "mail"}, "path 'mail': expected a path with {key}"),
        ({"path": "/{key}"}, "expected a path"),
        ({"path": "../{key}"}, "expected a path"),
        ({"path": "{key}/{user}"}, "expected a path"),
        ({"endpoint": "s3://x"}, "endpoint '...': write http://HOST"),
        ({"endpoint": "http://x:hunter2@y"}, "endpoint '...': write http://HOST"),
        ({"access_key_id": None}, "and vice versa"),
        ({"secret_access_key": None}, "and vice versa"),
    ],
)
def test_a_bad_value_is_an_error_that_shows_no_secret(options: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message) as caught:
        S3(**{"bucket": "mail", **ACCESS, **options})
    assert "hunter2" not in str(caught.value)


def test_it_runs_under_aiosmtpd(s3_server: S3Server) -> None:
    with client_of_aiosmtpd(sink_of(s3_server)) as client:
        client.sendmail("a@example.com", ["b@example.com"], CONTENT)
    ((content, _),) = s3_server.objects().values()
    assert content.endswith(CONTENT)
