"""Idle sessions: the memory of each, and their effect on other sessions."""

from __future__ import annotations

from resource import RLIMIT_NOFILE, getrlimit
from typing import TYPE_CHECKING, ClassVar

from bench.contenders.base import Contender, Needs, serving
from bench.proc import KIB, proportional_bytes
from bench.process import Client
from bench.workloads.base import Metric, Workload
from bench.workloads.mail import ManyAConnection

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.certificates import Certificates

__all__ = ["IdleMemory", "MessageAmongIdle"]

FEW = 1000
MANY = 5000
CAPACITY = 6000
SPARE_FILES = 200

WARM_UP = 10


def _too_few_files() -> str:
    hard = getrlimit(RLIMIT_NOFILE)[1]
    if hard >= CAPACITY + SPARE_FILES:
        return ""
    return f"a process may open only {hard} files here (RLIMIT_NOFILE)"


class IdleMemory(Workload):
    """The memory of an idle session."""

    key = "W4"
    title = "Memory of an idle session"
    metrics: ClassVar[Sequence[Metric]] = (
        Metric("many", f"memory per session, of {MANY:,}", "KiB", compared=True),
        Metric("few", f"memory per session, of {FEW:,}", "KiB", compared=True),
    )

    @property
    def how(self) -> str:
        """The method of measurement."""
        return (
            "The server's own memory (PSS, the sum over its processes) before and after a client "
            f"opens {FEW:,} and then {MANY:,} sessions that have read the greeting and sent EHLO, "
            f"from several addresses; the difference, divided by their number. {WARM_UP} sessions "
            f"are open at the beginning. The server's limit is {CAPACITY:,} sessions. The kernel's "
            "memory for sockets is not included."
        )

    def missing(self) -> str:
        """Check that the limits permit so many sessions."""
        return _too_few_files()

    def measure(self, contender: Contender, certificates: Certificates) -> dict[str, float]:
        """Measure the memory with three numbers of sessions."""
        with (
            serving(contender, Needs(capacity=CAPACITY), certificates) as served,
            Client("hold", served.folder, port=served.port) as holder,
        ):
            holder.request(str(WARM_UP))
            before = proportional_bytes(served.pid)
            figures = {}
            for key, count in (("few", FEW), ("many", MANY)):
                holder.request(str(WARM_UP + count))
                served.cpu_seconds()
                taken = proportional_bytes(served.pid) - before
                figures[key] = taken / count / KIB
            return figures


class MessageAmongIdle(Workload):
    """The cost of a message while other clients are connected."""

    key = "W9"
    title = "The cost of a message with many others connected"
    metrics: ClassVar[Sequence[Metric]] = (
        Metric("ratio", f"CPU per message, {MANY:,} others / {WARM_UP} others", ""),
        Metric("cpu", f"CPU per message, {MANY:,} others", "us", compared=True),
    )

    def __init__(self, count: int) -> None:
        self._mail = ManyAConnection(count)

    @property
    def how(self) -> str:
        """The method of measurement."""
        return (
            f"The messages of W2, {self._mail.count:,} at a time, on one server: with {WARM_UP} "
            f"idle sessions of other clients, with {MANY:,}, and with {WARM_UP} again. The ratio "
            "is that of the second to the mean of the first and the third."
        )

    def missing(self) -> str:
        """Check that the limits permit so many sessions, and check for the client."""
        return _too_few_files() or self._mail.missing()

    def measure(self, contender: Contender, certificates: Certificates) -> dict[str, float]:
        """Measure three times on one server."""
        count = contender.share(self._mail.count)
        with (
            serving(contender, Needs(capacity=CAPACITY), certificates) as served,
            Client("hold", served.folder, port=served.port) as holder,
        ):
            self._mail.send(served, max(20, count // 10))
            costs = []
            for others in (WARM_UP, MANY, WARM_UP):
                holder.request(str(others))
                costs.append(self._mail.cost(served, count)["cpu"])
            return {"ratio": costs[1] / ((costs[0] + costs[2]) / 2), "cpu": costs[1]}
