"""Contender: a server that takes part, and how it is started for what a workload needs."""

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
"""Somebody else may take a port between our finding it free and the server's binding it."""

LEAST = 4

SETTLE_SECONDS = 0.15
"""What a server has left to do when its clients are gone is counted as well."""


@dataclass(frozen=True)
class Needs:
    """What a workload wants of a server.

    :ivar capacity: sessions at once
    :ivar limit: sessions at once from one address; 0 is no limit
    :ivar largest: size of the largest message, bytes
    :ivar tls: STARTTLS
    :ivar keep: whether messages are kept on the disk, below ``Place.mail``, not thrown away
    :ivar queue: whether a server that has a queue puts messages there first
    :ivar hop: HOST:PORT of the server that messages are relayed to; empty: they are not
    :ivar fleet: the Redis of a fleet, as the option ``--fleet`` has it; empty: the server is alone
    :ivar milter: the milter that judges messages, ``unix:PATH`` or ``HOST:PORT``; empty: none
    :ivar rspamd: the URL of the rspamd that judges messages; empty: none
    :ivar handlers: of this daemon, as its option ``--handler`` has them; empty: by the others
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
    """Where a server is started: what it may use."""

    port: int
    folder: Path
    certificates: Certificates

    @property
    def mail(self) -> Path:
        """Where mail is kept: a Maildir."""
        return self.folder / "Maildir"


class Contender(ABC):
    """A server that takes part."""

    name: ClassVar[str]
    """As ``--server`` and the tables have it."""

    setup: ClassVar[str]
    """How it is set up, for the page."""

    cannot: ClassVar[dict[str, str]] = {}
    """Key of a workload: why it is not measured there."""

    only: ClassVar[tuple[str, ...]] = ()
    """Keys of the only workloads that it takes part in; empty: all that it can."""

    portion: ClassVar[float] = 1.0
    """Of a workload's messages, how many it gets: it is measured long enough with these."""

    portion_of_connections: ClassVar[float | None] = None
    """The same where each small message has a connection of its own, if that differs."""

    def takes_part(self, key: str) -> bool:
        """Return whether it takes part in a workload, if it can."""
        return not self.only or key in self.only

    def share(self, count: int, *, connections: bool = False) -> int:
        """Return how many of *count* messages it gets.

        :param connections: whether what it does is mostly to greet and to part
        """
        other = self.portion_of_connections
        portion = other if connections and other is not None else self.portion
        return max(LEAST, round(count * portion))

    @abstractmethod
    def missing(self) -> str:
        """Make it ready; return why that cannot be, or an empty string."""

    @abstractmethod
    def version(self) -> str:
        """Return name and version, for the page."""

    @abstractmethod
    def command(self, place: Place, needs: Needs) -> list[str]:
        """Write what it needs into the folder, and return program and arguments."""


class Served:
    """A server that runs."""

    def __init__(self, process: Process, place: Place) -> None:
        self._process = process
        self.pid = process.pid
        self.port = place.port
        self.folder = place.folder
        self.certificates = place.certificates

    def cpu_seconds(self) -> float:
        """Return the processor time that it has used until now.

        :raises BenchError: it has ended
        """
        time.sleep(SETTLE_SECONDS)
        if not self._process.alive:
            raise BenchError(f"the server ended: {self._process.last_words}")
        return cpu_seconds(self.pid)


@contextmanager
def serving(
    contender: Contender, needs: Needs, certificates: Certificates, port: int = 0
) -> Iterator[Served]:
    """Run a server of its own for the block, on a port of loopback.

    :param port: which one; 0: one that is free
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
            if not _comes_up(process, place.port):
                if attempt < ATTEMPTS - 1:
                    continue
                raise BenchError(f"it did not start: {process.last_words}")
            yield process, place
            return


def free_port() -> int:
    """Return a port of loopback that is free now."""
    with socket.socket() as sock:
        sock.bind((HOST, 0))
        port: int = sock.getsockname()[1]
        return port


def _comes_up(process: Process, port: int) -> bool:
    """Wait for a greeting; False: the process has ended, or there is none."""
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
    """Return the path of a program, also where only root looks."""
    places = [os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin", "/usr/local/sbin"]
    return shutil.which(name, path=os.pathsep.join(places))
