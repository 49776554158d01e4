"""The webhook with an application that refuses, hangs, is slow, is down, or returns."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from support.http_app import App, running
from support.mail import mail
from support.ports import free_port
from support.raw_server import close, raw_server, reset, says, silence
from support.server import until
from support.sinks import BUSY, DELIVERED, DOWN, NOT_TAKEN, closing

from smtpd_fork.sinks import webhook
from smtpd_fork.sinks.webhook import Webhook

if TYPE_CHECKING:
    from support.raw_server import Behaviour


# -- answers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "reply", "permanent"),
    [
        (200, "250", "250"),
        (202, "250", "250"),
        (204, "250", "250"),
        (302, "451", "451"),
        (308, "451", "451"),
        (400, "451", "554 5.3.0"),
        (401, "451", "554 5.3.0"),
        (404, "451", "554 5.3.0"),
        (408, "451", "451"),
        (425, "451", "451"),
        (429, "451", "451"),
        (500, "451", "451"),
        (503, "451", "451"),
    ],
)
async def test_a_status_of_4xx_refuses_permanently_only_if_configured(
    status: int, reply: str, permanent: str
) -> None:
    async with running(App()) as app:
        app.status = status
        for flag, wanted in ((False, reply), (True, permanent)):
            async with closing(Webhook(app.url, permanent=flag)) as sink:
                assert str(await sink.deliver(mail())).startswith(f"{wanted} ")
                assert sink.status.down_since is None
    assert {each.path for each in app.requests} == {"/in"}  # no redirect was followed


async def test_an_answer_of_a_megabyte_is_read_and_a_longer_one_is_an_error() -> None:
    async with running(App()) as app, closing(Webhook(app.url)) as sink:
        app.text = "x" * webhook.LONGEST_ANSWER
        assert await sink.deliver(mail()) == DELIVERED
        app.text += "x"
        assert await sink.deliver(mail()) == NOT_TAKEN
        app.text = "thanks"
        assert await sink.deliver(mail()) == DELIVERED


_HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "behaviour",
    [
        reset,
        close,
        says(b"\0\xff garbage\r\n" * 10),
        says(b"220 mx.example.com ESMTP\r\n"),
        says(_HEAD + b"X: " + b"x" * (1 << 20) + b"\r\n\r\n"),
        says(_HEAD, endless=b"X: x\r\n" * 1000),
        says(b"x", endless=b"x" * 4096),
        says(b"", endless=b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
        says(_HEAD + b"Transfer-Encoding: chunked\r\n\r\nhello\r\n"),
        says(_HEAD + b"Content-Length: -1\r\n\r\n"),
    ],
    ids=[
        *("reset", "close", "garbage", "smtp", "long-field", "endless-fields", "endless-line"),
        *("endless-100", "bad-chunk", "bad-length"),
    ],
)
async def test_a_server_that_does_not_speak_http_is_down(behaviour: Behaviour) -> None:
    async with raw_server(behaviour) as port:
        async with closing(Webhook(f"http://127.0.0.1:{port}/", timeout=0.5)) as sink:
            assert await sink.deliver(mail()) == DOWN
            assert sink.status.down_since is not None
            assert len(sink.status.reason) < 400


async def test_a_server_that_sends_the_request_back_shows_no_secret_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read(65536))
        await writer.drain()

    async with raw_server(echo) as port:
        url = f"http://user:S3cret@127.0.0.1:{port}/in?key=S3cret"
        async with closing(Webhook(url, timeout=5)) as sink:
            assert await sink.deliver(mail()) == DOWN
            assert "S3cret" not in sink.status.reason
    assert "is down" in caplog.text
    assert "S3cret" not in caplog.text


@pytest.mark.parametrize(
    "behaviour",
    [
        silence,
        says(_HEAD + b"Content-Length: 5\r\n\r\nhell"),
        says(_HEAD + b"Content-Length: 500000\r\n\r\n"),
    ],
    ids=["silence", "no-end", "no-body"],
)
async def test_an_incomplete_answer_is_an_error(behaviour: Behaviour) -> None:
    async with raw_server(behaviour) as port:
        async with closing(Webhook(f"http://127.0.0.1:{port}/", timeout=0.2)) as sink:
            assert await sink.deliver(mail()) == DOWN
            assert sink.status.reason == "no answer within 0.2 s"


async def test_endless_bodies_are_aborted() -> None:
    behaviour = says(_HEAD + b"\r\n", endless=b"x" * 65536)
    async with raw_server(behaviour) as port:
        async with closing(Webhook(f"http://127.0.0.1:{port}/")) as sink:
            assert await sink.deliver(mail()) == NOT_TAKEN


# -- outages -----------------------------------------------------------------------------------


async def test_messages_get_451_immediately_while_the_application_is_down(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smtpd_fork.sinks.server_sink.RETRY_SECONDS", 0.05)
    port = free_port("127.0.0.1")
    async with closing(Webhook(f"http://127.0.0.1:{port}/in")) as sink:
        assert await sink.deliver(mail()) == DOWN
        assert sink.status.down_since is not None
        assert "Connection refused" in sink.status.reason
        many = [sink.deliver(mail()) for _ in range(100)]
        assert set(await asyncio.gather(*many)) == {DOWN}
        async with running(App(), port=port) as app:
            async with asyncio.timeout(10):
                while await sink.deliver(mail()) != DELIVERED:
                    await asyncio.sleep(0.01)
            assert await sink.deliver(mail()) == DELIVERED
            assert sink.status.reason == ""
        assert len(app.requests) == 2
        assert await sink.deliver(mail()) == DOWN
    said = [each.getMessage() for each in caplog.records if "webhook http" in each.getMessage()]
    lines = [line for line in said if " is down: " in line or " is up again" in line]
    assert [" is down: " in line for line in lines] == [True, False, True]


async def test_the_log_has_the_client_the_queue_id_and_the_reason(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running(App()) as app, closing(Webhook(app.url)) as sink:
        app.status = 503
        await sink.deliver(mail())
    (record,) = (each for each in caplog.records if "not delivered" in each.getMessage())
    assert record.getMessage() == (
        f"[77-1] 192.0.2.7:4711: not delivered to the webhook {app.url}: the application "
        "answered 503"
    )
    assert record.__dict__["queue_id"] == "77-1-1"


async def test_an_unexpected_error_loses_no_message(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(App()) as app, closing(Webhook(app.url)) as sink:
        with monkeypatch.context() as patch:
            patch.setattr("smtpd_fork.sinks.webhook.envelope_fields", lambda _: 1 // 0)
            assert await sink.deliver(mail()) == NOT_TAKEN
        assert "unexpected ZeroDivisionError" in caplog.text
        assert await sink.deliver(mail()) == DELIVERED


async def test_connections_and_the_wait_for_them_are_limited() -> None:
    released = asyncio.Event()
    async with running(App()) as app:
        app.before = released.wait
        async with closing(Webhook(app.url, connections=2, wait=0.05)) as sink:
            first = [asyncio.create_task(sink.deliver(mail())) for _ in range(2)]
            await until(lambda: len(app.requests) == 2)
            assert await sink.deliver(mail()) == BUSY
            assert sink.status.busy == 2
            released.set()
            assert [await each for each in first] == [DELIVERED] * 2
            many = [sink.deliver(mail()) for _ in range(20)]
            assert set(await asyncio.gather(*many)) == {DELIVERED}


async def test_an_application_that_restarts_between_two_messages_gets_both() -> None:
    port = free_port("127.0.0.1")
    async with closing(Webhook(f"http://127.0.0.1:{port}/")) as sink:
        for _ in range(3):
            async with running(App(), port=port) as app:
                assert await sink.deliver(mail()) == DELIVERED
                assert len(app.requests) == 1


async def test_a_cancelled_message_leaves_nothing_behind() -> None:
    async with running(App()) as app:
        released = asyncio.Event()
        app.before = released.wait
        async with closing(Webhook(app.url)) as sink:
            task = asyncio.create_task(sink.deliver(mail()))
            await until(lambda: app.requests)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            released.set()
            assert await sink.deliver(mail()) == DELIVERED
