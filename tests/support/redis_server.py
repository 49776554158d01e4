"""A redis-server for one test."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from support.peer_server import PeerServer
from support.ports import free_port

if TYPE_CHECKING:
    from pathlib import Path

    from support.tls import Certificates


PROGRAM = os.environ.get("REDIS_SERVER", "redis-server")
"""The program, or ``valkey-server``."""

DURABLE = ("--appendonly", "yes", "--appendfsync", "always")


class RedisServer(PeerServer):
    """A server that listens on a unix socket and on a port.

    :param sentinel: configuration; the program is a Sentinel
    :ivar path: of the unix socket
    :ivar url: of the unix socket
    :ivar port: of TCP, or of TLS with *certificates*
    """

    def __init__(
        self,
        *options: str,
        certificates: Certificates | None = None,
        sentinel: Path | None = None,
    ) -> None:
        super().__init__(PROGRAM)
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

    def _arguments(self) -> list[str]:
        here = ["--bind", "127.0.0.1", "--unixsocket", str(self.path)]
        return [*self._sentinel, *here, *self._options]

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                client.ping()
        except redis.AuthenticationError:
            return True
        except redis.ConnectionError:
            return False
        return True

    def client(self) -> redis.Redis:
        return redis.Redis(unix_socket_path=str(self.path), retry=Retry(NoBackoff(), 0))

    def entries(self, stream: str = "mail") -> list[dict[bytes, bytes]]:
        """Return the fields of all entries of a stream."""
        with self.client() as client:
            return [fields for _, fields in client.xrange(stream)]
