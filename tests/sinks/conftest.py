from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.nats_server import NatsServer
from support.redis_server import DURABLE, RedisServer
from support.s3_server import S3Server

if TYPE_CHECKING:
    from collections.abc import Iterator


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
