"""Processes: the throughput of two processes on the same sockets, compared with one."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from bench.contenders.base import Contender, Needs, Served, serving
from bench.cpu_share import cpu_share, cpu_share_fault
from bench.proc import family
from bench.workloads.base import MICRO, Metric, Workload
from bench.workloads.durable import file_system_fault
from bench.workloads.mail import SMALL, send

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from bench.certificates import Certificates

__all__ = ["TwoProcesses"]

CONNECTIONS = 20

SOURCES = 3
"""Number of smtp-source processes: a single one cannot keep two server processes busy."""

SHARE = 0.2
"""CPU share of each process of the daemon."""


class TwoProcesses(Workload):
    """Small messages for one process, and for two.

    :param count: messages with a connection each; half as many are sent to be stored
    """

    key = "W17"
    title = "Two processes"
    metrics: ClassVar[Sequence[Metric]] = (
        Metric("rate", "messages per second, one per connection", "", compared=True, more=True),
        Metric("stored", "messages per second, stored on disk", "", compared=True, more=True),
        Metric("cpu", "CPU per message, one per connection", "us", compared=True),
    )
    servers: ClassVar[Sequence[str]] = ("smtpd-fork", "two-processes")
    compared_with: ClassVar[Sequence[str]] = ("smtpd-fork",)

    def __init__(self, count: int) -> None:
        self._count = count

    @property
    def how(self) -> str:
        """The method of measurement."""
        return (
            f"As W1 and W12, by {SOURCES} smtp-source at once with {CONNECTIONS} connections each, "
            f"for the daemon as it is and with `--processes 2`: {self._count:,} messages with a "
            f"connection each, and {self._count // 2:,} that are stored in a Maildir. smtp-source "
            "needs more CPU time than the daemon, so two cores are not enough to measure two "
            "processes: a control group limits each process of the daemon to a fifth of a core, "
            "and smtp-source is not limited. More messages are better, also for the ratios."
        )

    def missing(self) -> str:
        """Check for the client, a file system on a disk, and support of control groups."""
        return file_system_fault() or cpu_share_fault()

    def measure(self, contender: Contender, certificates: Certificates) -> dict[str, float]:
        """Measure wall time and CPU time."""
        with serving(contender, Needs(), certificates) as served, _shared(served):
            self._send(served, CONNECTIONS, keep=False)
            before = served.cpu_seconds()
            seconds = self._send(served, self._count, keep=False)
            used = served.cpu_seconds() - before
        stored = self._count // 2
        with serving(contender, Needs(keep=True), certificates) as served, _shared(served):
            self._send(served, CONNECTIONS, keep=True)
            stored_seconds = self._send(served, stored, keep=True)
        return {
            "rate": self._count / seconds,
            "stored": stored / stored_seconds,
            "cpu": MICRO * used / self._count,
        }

    @staticmethod
    def _send(served: Served, count: int, *, keep: bool) -> float:
        """Send messages; return the duration in seconds."""
        began = time.monotonic()
        with ThreadPoolExecutor(SOURCES) as sources:
            each = partial(send, size=SMALL, at_once=CONNECTIONS, keep=keep)
            for sent in [sources.submit(each, served, count // SOURCES) for _ in range(SOURCES)]:
                sent.result()
        return time.monotonic() - began


def _shared(served: Served) -> AbstractContextManager[None]:
    """Limit the CPU share of the daemon, or of each child process of its supervisor."""
    return cpu_share(family(served.pid)[1:] or [served.pid], SHARE)
