"""Contender: a server that is compared, and the command that starts it for a workload."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import time
from abc import ABC, abstractmethod
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from bench.proc import cpu_seconds
from bench.process import BenchError, Process

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bench.certificates import Certificates

__all__ = [
    "HOST",
    "MIB",
    "Contender",
    "Needs",
    "Place",
    "Served",
    "find_program",
    "free_port",
    "serving",
]

HOST = "127.0.0.1"
MIB = 1024 * 1024

START_SECONDS = 20.0
ATTEMPTS = 3
"""Attempts to start a server: another program may bind the free port before the server does."""

LEAST = 4

SETTLE_SECONDS = 0.15
"""Seconds to wait after the last client: the server's cleanup is measured as well."""


@dataclass(frozen=True)
class Needs:
    """The settings of a server that a workload needs.

    :ivar capacity: maximum number of sessions
    :ivar limit: maximum number of sessions per client address; 0 is no limit
    :ivar largest: size of the largest message, bytes
    :ivar tls: STARTTLS
    :ivar keep: whether messages are stored on disk, below ``Place.mail``, or discarded
    :ivar queue: whether a server with a queue writes messages to it first
    :ivar hop: HOST:PORT of the server that messages are relayed to; empty: no relaying
    :ivar fleet: the Redis of a fleet, in the form of the option ``--fleet``; empty: no fleet
    :ivar milter: the milter that checks messages, ``unix:PATH`` or ``HOST:PORT``; empty: none
    :ivar rspamd: the URL of the rspamd that checks messages; empty: none
    :ivar handlers: values of this daemon's option ``--handler``; empty: from the other fields
    """

    capacity: int = 1000
    limit: int = 0
    largest: int = 32 * MIB
    tls: bool = False
    keep: bool = False
    queue: bool = False
    hop: str = ""
    fleet: str = ""
    milter: str = ""
    rspamd: str = ""
    handlers: Sequence[str] = ()


class Place(NamedTuple):
    """The directory, address and port that a server is started with."""

    port: int
    folder: Path
    certificates: Certificates

    @property
    def mail(self) -> Path:
        """The Maildir for messages."""
        return self.folder / "Maildir"


class Contender(ABC):
    """A server that is compared."""

    name: ClassVar[str]
    """The name in ``--server`` and in the tables."""

    setup: ClassVar[str]
    """The setup of the server, for the page."""

    cannot: ClassVar[dict[str, str]] = {}
    """Key of a workload: why the server is not measured in it."""

    only: ClassVar[tuple[str, ...]] = ()
    """Keys of the only workloads that measure the server; empty: all that it supports."""

    portion: ClassVar[float] = 1.0
    """Part of a workload's messages that a slow server gets: these are enough for a measurement."""

    portion_of_connections: ClassVar[float | None] = None
    """The same part for a workload with a connection per small message, if it differs."""

    def takes_part(self, key: str) -> bool:
        """Return whether a workload measures the server if the server supports it."""
        return not self.only or key in self.only

    def share(self, count: int, *, connections: bool = False) -> int:
        """Return how many of *count* messages the server gets.

        :param connections: whether most of the work is to open and close connections
        """
        other = self.portion_of_connections
        portion = other if connections and other is not None else self.portion
        return max(LEAST, round(count * portion))

    @abstractmethod
    def missing(self) -> str:
        """Prepare the server; return why that is impossible, or an empty string."""

    @abstractmethod
    def version(self) -> str:
        """Return the name and the version, for the page."""

    @abstractmethod
    def command(self, place: Place, needs: Needs) -> list[str]:
        """Write the configuration into the directory, and return the program and its arguments."""


class Served:
    """A running server."""

    def __init__(self, process: Process, place: Place) -> None:
        self._process = process
        self.pid = process.pid
        self.port = place.port
        self.folder = place.folder
        self.certificates = place.certificates

    def cpu_seconds(self) -> float:
        """Return the CPU time that the server has used so far.

        :raises BenchError: the server has ended
        """
        time.sleep(SETTLE_SECONDS)
        if not self._process.alive:
            raise BenchError(f"the server ended: {self._process.last_output}")
        return cpu_seconds(self.pid)


@contextmanager
def serving(
    contender: Contender, needs: Needs, certificates: Certificates, port: int = 0
) -> Iterator[Served]:
    """Run a server for the block, on a port of loopback.

    :param port: the port; 0: a free one
    """
    with tempfile.TemporaryDirectory(prefix="smtpd-fork-bench-") as name:
        folder = Path(name)
        with _start(contender, needs, folder, certificates, port) as (process, place):
            yield Served(process, place)


@contextmanager
def _start(
    contender: Contender, needs: Needs, folder: Path, certificates: Certificates, port: int
) -> Iterator[tuple[Process, Place]]:
    for attempt in range(ATTEMPTS):
        place = Place(port or free_port(), folder, certificates)
        with Process(contender.command(place, needs), folder) as process:
            if not _starts(process, place.port):
                if attempt < ATTEMPTS - 1:
                    continue
                raise BenchError(f"it did not start: {process.last_output}")
            yield process, place
            return


def free_port() -> int:
    """Return a free port of loopback."""
    with socket.socket() as sock:
        sock.bind((HOST, 0))
        port: int = sock.getsockname()[1]
        return port


def _starts(process: Process, port: int) -> bool:
    """Wait for a greeting; return False if the process ends or sends none."""
    deadline = time.monotonic() + START_SECONDS
    while process.alive and time.monotonic() < deadline:
        try:
            with socket.create_connection((HOST, port), timeout=START_SECONDS) as sock:
                greeting = sock.recv(512)
                sock.sendall(b"QUIT\r\n")
                sock.recv(512)
            return greeting.startswith(b"220") and process.alive
        except OSError:
            time.sleep(0.02)
    return False


def find_program(name: str) -> str | None:
    """Return the path of a program, also from directories that only root has in PATH."""
    places = [os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin", "/usr/local/sbin"]
    return shutil.which(name, path=os.pathsep.join(places))
