"""Destinations of the sinks: the server to start for each, and the values of ``--handler``."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import socket
import sys
import time
import urllib.request
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from bench.contenders.base import HOST, find_program, free_port
from bench.process import BenchError, Process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

__all__ = ["DESTINATIONS", "Destination", "listening"]

START_SECONDS = 20.0

STREAM_LIMIT = 64 * 1024 * 1024
"""Largest message of NATS, bytes; its default is 1 MiB."""


class Destination(NamedTuple):
    """A destination of a sink.

    :ivar start: starts the server in a directory, on a port; returns the values of ``--handler``
    :ivar programs: required programs
    :ivar modules: required Python modules
    """

    sink: str
    start: Callable[[Path, int], AbstractContextManager[Sequence[str]]]
    programs: Sequence[str] = ()
    modules: Sequence[str] = ()

    def missing(self) -> str:
        """Return why the destination cannot be started, or an empty string."""
        for program in self.programs:
            if find_program(program) is None:
                return f"{program} is not installed"
        for module in self.modules:
            if importlib.util.find_spec(module) is None:
                return f"the Python package {module} is not installed"
        return ""

    def __call__(self, folder: Path) -> AbstractContextManager[Sequence[str]]:
        """Start the destination in a new directory."""
        directory = folder / "destination"
        directory.mkdir()
        return self.start(directory, free_port())


@contextmanager
def listening(command: Sequence[str], folder: Path, port: int) -> Iterator[None]:
    """Run a server for the block, which begins when the server listens."""
    with Process([find_program(command[0]) or command[0], *command[1:]], folder) as process:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                socket.create_connection((HOST, port)).close()
                break
            except OSError:
                if not process.alive or time.monotonic() > deadline:
                    raise BenchError(f"{command[0]}: {process.last_output}") from None
                time.sleep(0.02)
        yield


@contextmanager
def _discard(_folder: Path, _port: int) -> Iterator[Sequence[str]]:
    yield ["discard"]


@contextmanager
def _maildir(folder: Path, _port: int) -> Iterator[Sequence[str]]:
    yield [f"maildir:{folder}/Maildir"]


@contextmanager
def _mbox(folder: Path, _port: int) -> Iterator[Sequence[str]]:
    yield [f"mbox:{folder}/mbox"]


@contextmanager
def _pipe(folder: Path, _port: int) -> Iterator[Sequence[str]]:
    yield [f"pipe:{shutil.which('cp')} /dev/stdin {folder}/message"]


def _smtp_sink(port: int, *options: str) -> list[str]:
    user = ["-u", "nobody"] if os.geteuid() == 0 else []
    return ["smtp-sink", *user, *options, f"{HOST}:{port}", "16"]


@contextmanager
def _relay(folder: Path, port: int) -> Iterator[Sequence[str]]:
    with listening(_smtp_sink(port), folder, port):
        yield [f"relay:{HOST}:{port}"]


@contextmanager
def _lmtp(folder: Path, port: int) -> Iterator[Sequence[str]]:
    with listening(_smtp_sink(port, "-L"), folder, port):
        yield [f"lmtp:{HOST}:{port}"]


@contextmanager
def _webhook(folder: Path, port: int) -> Iterator[Sequence[str]]:
    command = [sys.executable, "-m", "bench.peers.webhook", "--host", HOST, "--port", str(port)]
    with listening(command, folder, port):
        yield [f"webhook:http://{HOST}:{port}/"]


@contextmanager
def _webhook_json(folder: Path, port: int) -> Iterator[Sequence[str]]:
    with _webhook(folder, port) as (handler,):
        yield [f"{handler},format=json"]


@contextmanager
def _redis(folder: Path, port: int) -> Iterator[Sequence[str]]:
    command = ["redis-server", "--bind", HOST, "--port", str(port), "--save", ""]
    with listening(command, folder, port):
        yield [f"redis:redis://{HOST}:{port}"]


@contextmanager
def _nats(folder: Path, port: int) -> Iterator[Sequence[str]]:
    settings = (
        f"listen: {HOST}:{port}\nmax_payload: {STREAM_LIMIT}\n"
        f'jetstream {{ store_dir: "{folder}/store" }}\n'
    )
    (folder / "conf").write_text(settings, encoding="utf-8")
    with listening(["nats-server", "-c", f"{folder}/conf"], folder, port):
        url = f"nats://{HOST}:{port}"
        asyncio.run(_add_stream(url))
        yield [f"nats:{url}"]


async def _add_stream(url: str) -> None:
    import nats  # noqa: PLC0415 - an optional dependency

    client = await nats.connect(url)
    await client.jetstream().add_stream(name="MAIL", subjects=["mail"], duplicate_window=3600)
    await client.close()


@contextmanager
def _s3(folder: Path, port: int) -> Iterator[Sequence[str]]:
    command = [sys.executable, "-m", "moto.server", "-H", HOST, "-p", str(port)]
    with listening(command, folder, port):
        url = f"http://{HOST}:{port}"
        bucket = urllib.request.Request(f"{url}/mail", method="PUT")  # noqa: S310 - the URL is HTTP
        urllib.request.urlopen(bucket).close()  # noqa: S310 - see above
        login = "access-key-id=mail,secret-access-key=mail,region=us-east-1"
        yield [f"s3:mail,endpoint={url},{login}"]


@contextmanager
def _two_milters(folder: Path, port: int) -> Iterator[Sequence[str]]:
    ports = port, free_port()
    command = [sys.executable, "-m", "bench.peers.milter", "--edits", "--port"]
    with (
        listening([*command, str(ports[0])], folder, ports[0]),
        listening([*command, str(ports[1])], folder, ports[1]),
    ):
        yield [*(f"milter:{HOST}:{each}" for each in ports), "discard"]


DESTINATIONS = (
    Destination("discard", _discard),
    Destination("maildir", _maildir),
    Destination("mbox", _mbox),
    Destination("pipe", _pipe),
    Destination("lmtp", _lmtp, programs=["smtp-sink"]),
    Destination("relay", _relay, programs=["smtp-sink"]),
    Destination("webhook", _webhook, modules=["aiohttp"]),
    Destination("webhook json", _webhook_json, modules=["aiohttp"]),
    Destination("redis", _redis, programs=["redis-server"], modules=["redis"]),
    Destination("nats", _nats, programs=["nats-server"], modules=["nats"]),
    Destination("s3", _s3, modules=["obstore", "moto"]),
    Destination("two milters", _two_milters),
)
