"""S3 with a store that refuses, sends garbage, hangs, is down, or returns."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from support.http_app import App, running
from support.mail import mail
from support.peers import proc
from support.ports import free_port
from support.raw_server import close, raw_server, reset, says, silence
from support.s3_server import ACCESS, S3Server
from support.sinks import DELIVERED, DOWN, NOT_TAKEN, closing

from smtpd_fork.sinks.s3 import S3

if TYPE_CHECKING:
    from support.raw_server import Behaviour
    from support.tls import Certificates


@pytest.fixture(autouse=True)
def idle_connections_are_closed_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smtpd_fork.sinks.s3_store.IDLE_SECONDS", 0.1)


def sink_at(url: str, **options: Any) -> S3:
    return S3("mail", endpoint=url, **{**ACCESS, **options})


async def test_a_deleted_bucket_accepts_no_message(
    s3_server: S3Server, caplog: pytest.LogCaptureFixture
) -> None:
    async with closing(S3("gone", endpoint=s3_server.url, **ACCESS)) as sink:
        assert await sink.deliver(mail()) == NOT_TAKEN
    assert "404 Not Found NoSuchBucket" in caplog.text
    assert "hunter2" not in caplog.text


@pytest.mark.parametrize(
    ("status", "reply"), [(400, NOT_TAKEN), (403, NOT_TAKEN), (500, DOWN), (503, DOWN)]
)
async def test_no_status_refuses_a_message_permanently(status: int, reply: str) -> None:
    async with running(App()) as app:
        app.status = status
        app.text = "<Error><Code>SlowDown</Code><Message>hunter2</Message></Error>"
        async with closing(sink_at(app.url.removesuffix("/in"))) as sink:
            assert await sink.deliver(mail()) == reply
            assert "hunter2" not in sink.status.reason


@pytest.mark.parametrize("status", [409, 412])
async def test_an_object_that_is_reported_to_exist_is_verified(
    status: int,
) -> None:
    async with running(App()) as app:

        async def then() -> None:
            app.status = status if len(app.requests) % 2 else 404

        app.before = then
        async with closing(sink_at(app.url.removesuffix("/in"))) as sink:
            assert await sink.deliver(mail()) == NOT_TAKEN
            assert len(app.requests) == 2


_HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "behaviour",
    [
        silence,
        reset,
        close,
        says(b"\0\xff garbage\r\n" * 10),
        says(_HEAD + b"X: " + b"x" * (1 << 20) + b"\r\n\r\n"),
        says(_HEAD, endless=b"X: x\r\n" * 1000),
        says(b"x", endless=b"x" * 4096),
        says(b"HTTP/1.1 500 No\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 1_000_000),
        says(b"HTTP/1.1 400 No\r\nContent-Length: 1000\r\n\r\nx"),
    ],
    ids=[
        *("silence", "reset", "close", "garbage", "long-field", "endless-fields"),
        *("endless-line", "long-error", "error-without-end"),
    ],
)
async def test_a_server_that_does_not_speak_s3_is_down(
    behaviour: Behaviour,
) -> None:
    async with raw_server(behaviour) as port:
        async with closing(sink_at(f"http://127.0.0.1:{port}", timeout=0.5)) as sink:
            assert await sink.deliver(mail()) == DOWN
            assert len(sink.status.reason) < 400


async def test_the_certificate_is_verified(certificates: Certificates) -> None:
    async with running(App(), tls=certificates.server) as app:
        url = app.url.removesuffix("/in")
        async with closing(sink_at(url, ca_file=str(certificates.ca))) as sink:
            assert await sink.deliver(mail()) == DELIVERED
        async with closing(sink_at(url)) as sink:
            assert await sink.deliver(mail()) == DOWN
    assert len(app.requests) == 1


async def test_the_store_is_used_again_when_it_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smtpd_fork.sinks.server_sink.RETRY_SECONDS", 0.05)
    port = free_port("127.0.0.1")
    async with closing(sink_at(f"http://127.0.0.1:{port}")) as sink:
        assert await sink.deliver(mail()) == DOWN
        assert "Connection refused" in sink.status.reason
        many = [sink.deliver(mail()) for _ in range(100)]
        assert set(await asyncio.gather(*many)) == {DOWN}
        async with running(App(), port=port):
            async with asyncio.timeout(10):
                while await sink.deliver(mail()) != DELIVERED:
                    await asyncio.sleep(0.01)
            assert sink.status.down_since is None


def test_the_start_creates_no_thread(s3_server: S3Server) -> None:
    proc()
    script = f"""
import os
from smtpd_fork.sinks.s3 import S3
S3("mail", endpoint={s3_server.url!r}, **{ACCESS}).prepare()
print(len(os.listdir("/proc/self/task")))
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert ended.stdout == "1\n"
