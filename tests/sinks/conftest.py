from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.filesystem import small_file_system
from support.nats_server import NatsServer
from support.redis_server import DURABLE, RedisServer
from support.s3_server import S3Server

from smtpd_fork.sinks import Maildir
from smtpd_fork.sinks.mbox import Mbox

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path


@pytest.fixture
async def maildirs(tmp_path: Path) -> AsyncIterator[Maildir]:
    """Return a sink with a Maildir for each recipient."""
    sink = Maildir(tmp_path / "mail" / "{domain}" / "{user}")
    sink.prepare()
    yield sink
    await sink.close()


@pytest.fixture
async def mbox(tmp_path: Path) -> AsyncIterator[Mbox]:
    sink = Mbox(tmp_path / "box", lock_timeout=0.3)
    sink.prepare()
    yield sink
    await sink.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a directory with a mounted file system of 64 KiB in it."""
    with small_file_system(tmp_path / "disk", "64k") as path:
        yield path


@pytest.fixture(scope="module")
def redis_of_module() -> Iterator[RedisServer]:
    with RedisServer(*DURABLE) as server:
        yield server


@pytest.fixture
def redis_server(redis_of_module: RedisServer) -> RedisServer:
    with redis_of_module.client() as client:
        client.flushall()
    return redis_of_module


@pytest.fixture(scope="module")
def nats_server() -> Iterator[NatsServer]:
    with NatsServer() as server:
        yield server


@pytest.fixture(scope="module")
def s3_of_module() -> Iterator[S3Server]:
    server = S3Server()
    yield server
    server.stop()


@pytest.fixture
def s3_server(s3_of_module: S3Server) -> S3Server:
    s3_of_module.clear()
    return s3_of_module
