"""Messages from Postfix's smtp-source: one per connection, many per connection, large ones."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, ClassVar

from bench.contenders.base import HOST, MIB, Contender, Needs, Served, find_program, serving
from bench.process import run
from bench.workloads.base import MICRO, Metric, Workload

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.certificates import Certificates

__all__ = ["CPU", "RATE", "SMALL", "LargeMail", "Mail", "ManyAConnection", "OneAConnection", "send"]

SMALL = 5120
"""Size of a small message, 5 KiB."""

LARGE = 10 * MIB

WARM_UP = 50
"""Messages sent before the measurement."""

PATIENCE = 300.0
"""Timeout of one run of smtp-source, seconds."""

CPU = Metric("cpu", "CPU per message", "us", compared=True)
RATE = Metric("rate", "messages per second", "")


def send(
    served: Served, count: int, *, size: int, at_once: int, keep: bool, lmtp: str = ""
) -> None:
    """Send *count* messages of *size* bytes.

    :param at_once: number of connections
    :param keep: whether several messages use the same connection
    :param lmtp: path of the unix socket of an LMTP server; empty: SMTP, at the server's port
    :raises BenchError: the server did not accept one of them
    """
    program = find_program("smtp-source") or "smtp-source"
    command = [program, "-M", "client.example", "-f", "a@example.com", "-t", "b@example.com"]
    command += ["-l", str(size), "-m", str(count), "-s", str(min(at_once, count))]
    if keep:
        command.append("-d")
    command += ["-L", f"unix:{lmtp}"] if lmtp else [f"inet:{HOST}:{served.port}"]
    run(command, served.folder, PATIENCE)


class Mail(Workload):
    """Messages of one size.

    :param count: messages; a contender may get more or fewer of them
    """

    metrics: ClassVar[Sequence[Metric]] = (CPU, RATE)
    size: ClassVar[int]
    at_once: ClassVar[int]
    keep: ClassVar[bool]
    connections: ClassVar[bool] = False
    """Whether most of the work is to open and close connections."""

    def __init__(self, count: int) -> None:
        self.count = count

    @property
    def how(self) -> str:
        """The method of measurement."""
        connection = (
            "each connection is kept for many messages (`-d`)"
            if self.keep
            else "each message has a connection of its own"
        )
        return (
            f"`smtp-source -s {self.at_once} -l {self.size}`: {self.at_once} connections at once, "
            f"messages of {self.size:,} bytes, {connection}. {self.count:,} messages per round; "
            f"some servers get more or fewer, see below."
        )

    def missing(self) -> str:
        """Check for the client."""
        return "" if find_program("smtp-source") else "smtp-source is not installed"

    def measure(self, contender: Contender, certificates: Certificates) -> dict[str, float]:
        """Measure CPU time and wall time."""
        count = contender.share(self.count, connections=self.connections)
        with serving(contender, Needs(), certificates) as served:
            self.send(served, min(WARM_UP, max(2, count // 10)))
            return self.cost(served, count)

    def send(self, served: Served, count: int) -> None:
        """Send messages of this workload."""
        send(served, count, size=self.size, at_once=self.at_once, keep=self.keep)

    def warm_cost(self, served: Served, count: int) -> dict[str, float]:
        """Warm the server up, and return the cost of *count* messages."""
        self.send(served, WARM_UP)
        return self.cost(served, count)

    def cost(self, served: Served, count: int) -> dict[str, float]:
        """Return the cost of *count* messages."""
        before = served.cpu_seconds()
        began = time.monotonic()
        self.send(served, count)
        seconds = time.monotonic() - began
        used = served.cpu_seconds() - before
        return {"cpu": MICRO * used / count, "rate": count / seconds}


class OneAConnection(Mail):
    """One small message per connection."""

    key = "W1"
    title = "One 5 KiB message per connection"
    size = SMALL
    at_once = 10
    keep = False
    connections = True


class ManyAConnection(Mail):
    """Many small messages per connection."""

    key = "W2"
    title = "Many 5 KiB messages per connection"
    size = SMALL
    at_once = 10
    keep = True


class LargeMail(Mail):
    """Large messages."""

    key = "W3"
    title = "10 MiB messages, one per connection"
    metrics: ClassVar[Sequence[Metric]] = (CPU._replace(unit="ms"), RATE)
    size = LARGE
    at_once = 4
    keep = False

    def cost(self, served: Served, count: int) -> dict[str, float]:
        """Return the cost of *count* messages, in milliseconds."""
        figures = super().cost(served, count)
        return {**figures, "cpu": figures["cpu"] / 1000}
