"""The workers in examples/: each processes the messages of its sink; a kill loses none."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import smtplib
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.error import HTTPError

import pytest
from support.daemon import PATIENCE, Daemon, clean_environment, end, on_both_loops
from support.installation import ROOT
from support.killing import assert_once, deliver_and_kill
from support.nats_server import NatsServer, run
from support.ports import free_port
from support.redis_server import RedisServer
from support.s3_server import S3Server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

peers = pytest.mark.peers

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

HANGS = """
import sys, time
sys.path.insert(0, "examples")
import {name} as worker

def process(directory, key, *rest):
    print("begun " + key, flush=True)
    time.sleep(1000)

worker.process = process
worker.main()
"""
"""A program that runs a worker, and hangs while it processes a message."""

FAILS = HANGS.replace('print("begun " + key, flush=True)', "raise ValueError(key)")


@contextmanager
def program(*command: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=clean_environment(**environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        end(process)
        assert process.stdout is not None
        process.stdout.close()


@contextmanager
def worker(name: str, *arguments: object, **environment: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, f"examples/{name}.py", *map(str, arguments)]
    with program(*command, **environment) as process:
        yield process


def killed_at_work(name: str, *arguments: object, **environment: str) -> None:
    """Run a worker, and kill it in the middle of a message."""
    command = [sys.executable, "-c", HANGS.format(name=name), *map(str, arguments)]
    with program(*command, **environment) as process:
        assert said(process).startswith("begun ")
        process.kill()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def deliver(handler: str, cwd: Path, count: int = 3) -> None:
    with Daemon("-l", "127.0.0.1:0", "--handler", handler, cwd=cwd) as daemon:
        for number in range(count):
            daemon.deliver(f"Subject: {number}\r\n\r\nhello\r\n")


def stored(directory: Path, count: int = 3) -> list[bytes]:
    """Wait until a worker has written a number of messages; return their last lines."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        found = [path for path in directory.glob("*.eml") if not path.name.startswith(".")]
        if len(found) >= count:
            return sorted(path.read_bytes().partition(b"Subject: ")[2] for path in found)
        time.sleep(0.01)
    raise AssertionError(list(directory.iterdir()))


ALL = [b"%d\r\n\r\nhello\r\n" % number for number in range(3)]


@peers
def test_a_killed_redis_worker_loses_no_message(tmp_path: Path) -> None:
    with RedisServer() as server:
        deliver(f"redis:{server.url},stream=post", tmp_path)
        arguments = (server.url, "post", tmp_path / "out", "0.2")
        killed_at_work("redis_worker", *arguments)
        with worker("redis_worker", *arguments) as process:
            assert stored(tmp_path / "out") == ALL
            assert said(process).startswith("'from a@example.com to b@example.com: ")
            while server.entries("post"):
                time.sleep(0.01)


@peers
def test_a_message_that_no_redis_worker_can_process_is_set_aside(tmp_path: Path) -> None:
    with RedisServer() as server:
        deliver(f"redis:{server.url},stream=post", tmp_path)
        command = [sys.executable, "-c", FAILS.format(name="redis_worker")]
        with program(*command, server.url, "post", str(tmp_path / "out"), "0.01"):
            while len(server.entries("post:failed")) < 3:
                time.sleep(0.01)
        assert server.entries("post") == []


@peers
def test_a_redis_worker_continues_when_redis_is_back(tmp_path: Path) -> None:
    with RedisServer("--appendonly", "yes", "--appendfsync", "always") as server:
        with worker("redis_worker", server.url, "post", tmp_path / "out", "1"):
            deliver(f"redis:{server.url},stream=post", tmp_path, count=1)
            assert len(stored(tmp_path / "out", 1)) == 1
            server.kill()
            server.start()
            deliver(f"redis:{server.url},stream=post", tmp_path)
            assert stored(tmp_path / "out") == ALL


@peers
def test_a_killed_nats_worker_loses_no_message(tmp_path: Path) -> None:
    with NatsServer() as server:
        arguments = (server.url, "post", tmp_path / "out", "1")
        with worker("nats_worker", *arguments):  # creates the stream
            while not run(server.ask(lambda js: js.streams_info())):
                time.sleep(0.01)
        deliver(f"nats:{server.url},subject=post", tmp_path)
        killed_at_work("nats_worker", *arguments)
        with worker("nats_worker", *arguments) as process:
            assert stored(tmp_path / "out") == ALL
            assert said(process).startswith("'from a@example.com to b@example.com: ")
            while run(server.ask(lambda js: js.stream_info("MAIL"))).state.messages:
                time.sleep(0.01)


def test_a_killed_s3_worker_loses_no_message(tmp_path: Path) -> None:
    server = S3Server()
    try:
        access = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
        keys = "access-key-id=x,secret-access-key=x"
        server.clear()
        deliver(f"s3:mail,endpoint={server.url},path=mail/{{key}}.eml,{keys}", tmp_path)
        arguments = ("mail", tmp_path / "out", server.url)
        killed_at_work("s3_worker", *arguments, **access)
        with worker("s3_worker", *arguments, **access) as process:
            assert stored(tmp_path / "out") == ALL
            assert said(process).startswith("'from a@example.com to b@example.com: ")
            while {name.partition("/")[0] for name in server.names()} != {"done"}:
                time.sleep(0.01)
        assert len(server.names()) == 3
    finally:
        server.stop()


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[str]:
    """Run the webhook receiver; yield its URL."""
    port = free_port("127.0.0.1")
    with worker("webhook_receiver", f"127.0.0.1:{port}", tmp_path / "out", WEBHOOK_SECRET=SECRET):
        url = f"http://127.0.0.1:{port}/"
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            try:
                post(url, b"", {})
            except HTTPError:
                break
            except OSError:
                time.sleep(0.01)
        yield url


def post(url: str, body: bytes, headers: dict[str, str]) -> int:
    request = urllib.request.Request(url, body, headers)
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return int(answer.status)


def test_the_webhook_receiver_stores_each_message_once(receiver: str, tmp_path: Path) -> None:
    handler = f"webhook:{receiver},secret={SECRET}"
    deliver(handler, tmp_path)
    deliver(handler, tmp_path)
    assert stored(tmp_path / "out") == ALL
    assert len(os.listdir(tmp_path / "out")) == 3


@peers
@on_both_loops
def test_a_killed_daemon_loses_no_webhook(receiver: str, tmp_path: Path, loop: str) -> None:
    handler = f"webhook:{receiver},secret={SECRET}"
    names = deliver_and_kill("--handler", handler, "--loop", loop, cwd=tmp_path)
    assert_once(names, [path.read_bytes() for path in (tmp_path / "out").glob("*.eml")])


@pytest.mark.parametrize("fault", ["body", "key", "old", "future", "missing", "secret", None])
def test_the_webhook_receiver_accepts_only_signed_requests(
    receiver: str, tmp_path: Path, fault: str | None
) -> None:
    now = int(time.time()) + {"old": -400, "future": 400}.get(fault or "", 0)
    secret = b"x" * 24 if fault == "secret" else base64.b64decode(SECRET.removeprefix("whsec_"))
    digest = hmac.new(secret, f"k1.{now}.".encode() + b"hello", hashlib.sha256).digest()
    headers = {
        "webhook-id": "k2" if fault == "key" else "k1",
        "webhook-timestamp": str(now),
        "webhook-signature": "v1,AAAA v1," + base64.b64encode(digest).decode(),
        "x-mail-from": "a@example.com",
        "x-mail-to": "b@example.com",
    }
    if fault == "missing":
        del headers["webhook-signature"]
    body = b"hallo" if fault == "body" else b"hello"
    if fault is None:
        assert post(receiver, body, headers) == 204
        return
    with pytest.raises(HTTPError) as caught:
        post(receiver, body, headers)
    caught.value.close()
    assert caught.value.code == 401
    assert os.listdir(tmp_path / "out") == []


def test_a_receiver_with_another_secret_bounces_no_mail(receiver: str, tmp_path: Path) -> None:
    other = "whsec_" + base64.b64encode(b"x" * 24).decode()
    handler = f"webhook:{receiver},secret={other}"
    with Daemon("-l", "127.0.0.1:0", "--handler", handler, cwd=tmp_path) as daemon:
        with pytest.raises(smtplib.SMTPDataError) as caught:
            daemon.deliver()
    assert caught.value.smtp_code == 451
