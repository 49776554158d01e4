"""A redis-server of the test's own."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from support.daemon import PATIENCE, end
from support.peers import peer
from support.ports import free_port

if TYPE_CHECKING:
    from support.tls import Certificates


PROGRAM = os.environ.get("REDIS_SERVER", "redis-server")
"""Or ``valkey-server``."""

DURABLE = ("--appendonly", "yes", "--appendfsync", "always")


class RedisServer:
    """A context manager; it listens on a unix socket and on a port.

    :param sentinel: configuration; the program is a Sentinel
    :ivar path: of the unix socket
    :ivar url: of it
    :ivar port: of TCP, or of TLS with *certificates*
    """

    def __init__(
        self,
        *options: str,
        certificates: Certificates | None = None,
        sentinel: Path | None = None,
    ) -> None:
        self._program = peer(PROGRAM)  # now: a test that skips later leaves what it has begun
        # Not in tmp_path, which may be longer than the path of a socket.
        self.directory = Path(tempfile.mkdtemp(prefix="redis-"))
        self.path = self.directory / "sock"
        self.url = f"unix://{self.path}"
        self.port = free_port("127.0.0.1")
        self._sentinel = [] if sentinel is None else [str(sentinel), "--sentinel"]
        self._options = ["--dir", str(self.directory)]
        self._options += [*options] if sentinel else ["--save", "", *options]
        if certificates is not None:
            files = (certificates.cert, certificates.key, certificates.ca)
            names = ("--tls-cert-file", "--tls-key-file", "--tls-ca-cert-file")
            for name, file in zip(names, files, strict=True):
                self._options += [name, str(file)]
            self._options += ["--port", "0", "--tls-port", str(self.port)]
            self._options += ["--tls-auth-clients", "no"]
        else:
            self._options += ["--port", str(self.port)]

    def start(self) -> None:
        command = [
            self._program,
            *self._sentinel,
            "--bind",
            "127.0.0.1",
            "--unixsocket",
            str(self.path),
        ]
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *self._options], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                with self.client() as client:
                    client.ping()
            except redis.AuthenticationError:
                return
            except redis.ConnectionError:
                time.sleep(0.01)
            else:
                return
        raise AssertionError((self.directory / "log").read_text())

    def stop(self) -> None:
        end(self.process)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def client(self) -> redis.Redis:
        return redis.Redis(unix_socket_path=str(self.path), retry=Retry(NoBackoff(), 0))

    def entries(self, stream: str = "mail") -> list[dict[bytes, bytes]]:
        """Return the fields of all entries of a stream."""
        with self.client() as client:
            return [fields for _, fields in client.xrange(stream)]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.directory)
