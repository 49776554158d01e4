"""Messages that a milter checks: the additional cost of the milter."""

from __future__ import annotations

import socket
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from bench.contenders.base import HOST, Contender, Needs, Served, free_port, serving
from bench.process import BenchError, Process
from bench.workloads.base import MICRO, Metric
from bench.workloads.mail import WARM_UP, ManyAConnection, send

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bench.certificates import Certificates

__all__ = ["Milter"]

START_SECONDS = 20.0

MILLI = 1e3

OF_QUEUES = 4
"""Divisor of the number of messages for a server with a queue on the disk."""


class _Kind(NamedTuple):
    """A milter.

    :ivar silent: the milter answers nothing before the end of a message, as rspamd does
    :ivar edits: the milter changes the header
    """

    key: str
    label: str
    tcp: bool
    silent: bool
    edits: bool


KINDS = (
    _Kind("look", "unix, looks, answers each event", tcp=False, silent=False, edits=False),
    _Kind("silent", "unix, looks, one answer", tcp=False, silent=True, edits=False),
    _Kind("edits", "unix, edits, answers each event", tcp=False, silent=False, edits=True),
    _Kind("tcp", "TCP, looks, answers each event", tcp=True, silent=False, edits=False),
    _Kind("both", "TCP, edits, one answer", tcp=True, silent=True, edits=True),
)


class Milter(ManyAConnection):
    """Small messages, with a milter and without."""

    key = "W13"
    title = "5 KiB messages that a milter judges"
    metrics: ClassVar[Sequence[Metric]] = (
        Metric(KINDS[0].key, f"additional CPU, {KINDS[0].label}", "us", compared=True),
        *(Metric(each.key, f"additional CPU, {each.label}", "us") for each in KINDS[1:]),
        Metric("alone-look", "the first, one message per connection", "us"),
        Metric("alone-tcp", "the fourth, one message per connection", "us"),
        Metric("wait", "additional time to 250, the last", "ms"),
        Metric("cpu", "CPU without a milter", "us"),
    )
    servers: ClassVar[Sequence[str]] = ("smtpd-fork", "postfix")
    compared_with: ClassVar[Sequence[str]] = ("postfix",)

    @property
    def how(self) -> str:
        """The method of measurement."""
        return (
            "As W2, without a milter and with each of several; the values are the additional CPU "
            "time of the server per message. The milter is a small program on uvloop that reads "
            "all events of a message, answers each of them or only the last (as rspamd), and adds "
            "two header fields or none; its own CPU time is not counted. The additional time is "
            "that of one connection which sends one message after the other. "
            f"{self.count:,} messages for each. Postfix gets a quarter of them, and keeps them in "
            "its queue until discard(8) removes them."
        )

    def measure(self, contender: Contender, certificates: Certificates) -> dict[str, float]:
        """Measure CPU time and wall time."""
        count = contender.share(self.count) // (OF_QUEUES if contender.name == "postfix" else 1)
        figures: dict[str, float] = {}
        keys = {each.key for each in self.metrics}
        with serving(contender, Needs(queue=True), certificates) as served:
            figures["cpu"] = self._cpu(served, count)
            alone = self._cpu(served, count, keep=False)
            wait = self._wait(served, count)
        for kind in KINDS:
            with (
                _milter(kind) as address,
                serving(contender, Needs(queue=True, milter=address), certificates) as served,
            ):
                figures[kind.key] = self._cpu(served, count) - figures["cpu"]
                if f"alone-{kind.key}" in keys:
                    figures[f"alone-{kind.key}"] = self._cpu(served, count, keep=False) - alone
                if kind is KINDS[-1]:
                    figures["wait"] = self._wait(served, count) - wait
        return figures

    def _cpu(self, served: Served, count: int, *, keep: bool = True) -> float:
        """Return the CPU time of a message, in microseconds."""
        send(served, WARM_UP, size=self.size, at_once=self.at_once, keep=keep)
        before = served.cpu_seconds()
        send(served, count, size=self.size, at_once=self.at_once, keep=keep)
        return MICRO * (served.cpu_seconds() - before) / count

    def _wait(self, served: Served, count: int) -> float:
        """Return the time of a message over one connection, in milliseconds."""
        count = max(WARM_UP, count // 10)
        began = time.monotonic()
        send(served, count, size=self.size, at_once=1, keep=True)
        return MILLI * (time.monotonic() - began) / count


@contextmanager
def _milter(kind: _Kind) -> Iterator[str]:
    """Run a milter; yield its address, ``unix:PATH`` or ``HOST:PORT``."""
    with tempfile.TemporaryDirectory(prefix="milter-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # Postfix's user has to open the socket.
        port, path = free_port(), folder / "m"
        command = [sys.executable, "-m", "bench.peers.milter"]
        command += ["--port", str(port)] if kind.tcp else ["--path", str(path)]
        command += ["--silent"] if kind.silent else []
        command += ["--edits"] if kind.edits else []
        with Process(command, folder) as process:
            _wait_for(process, (HOST, port) if kind.tcp else str(path))
            if not kind.tcp:
                path.chmod(0o666)
            yield f"{HOST}:{port}" if kind.tcp else f"unix:{path}"


def _wait_for(process: Process, address: tuple[str, int] | str) -> None:
    """Wait until the milter listens.

    :raises BenchError: it does not listen in time
    """
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.alive:
        with socket.socket(family) as sock:
            try:
                sock.connect(address)
            except OSError:
                time.sleep(0.02)
            else:
                return
    raise BenchError(f"the milter did not start: {process.last_output}")
