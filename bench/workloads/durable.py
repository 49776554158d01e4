"""Durable delivery: messages are on the disk before the reply 250."""

from __future__ import annotations

import tempfile
import time
from typing import TYPE_CHECKING, ClassVar

from bench.contenders.base import Contender, Needs, find_program, serving
from bench.proc import FileSystem
from bench.workloads.base import Metric, Workload
from bench.workloads.mail import SMALL, send

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.certificates import Certificates

__all__ = ["Durable", "file_system_fault"]

CONNECTIONS = (1, 20, 100)

TIMES = {1: 1, 20: 6, 100: 6}
"""By number of connections: the factor of the number of messages."""


class Durable(Workload):
    """Small messages that are stored.

    :param count: messages over one connection
    """

    key = "W12"
    title = "Messages per second that are stored on disk"
    metrics: ClassVar[Sequence[Metric]] = tuple(
        Metric(f"rate{n}", f"messages per second, {n} at once", "", compared=True, more=True)
        for n in (20, 1, 100)  # The plot shows the first metric.
    )

    def __init__(self, count: int) -> None:
        self._count = count

    @property
    def how(self) -> str:
        """The method of measurement."""
        return (
            f"`smtp-source -d -l {SMALL}` with 1, 20 and 100 connections, each kept for many "
            f"messages; {self._count:,} messages with one, {self._count * TIMES[20]:,} with many. "
            "All servers write below one directory, on one disk. smtpd-fork answers 250 once the "
            "file and the directory of the Maildir are synced (fsync(2)), Postfix once the file of "
            "its queue is, aiosmtpd once the file in the Maildir is; qpsmtpd syncs nothing. More "
            "is better, also for the ratios. Other use of the disk affects the results: compare "
            "values of one round."
        )

    def missing(self) -> str:
        """Check for the client, and for a file system on a disk."""
        return file_system_fault()

    def measure(self, contender: Contender, certificates: Certificates) -> dict[str, float]:
        """Measure wall time with few and with many connections."""
        figures = {}
        with serving(contender, Needs(keep=True), certificates) as served:
            for at_once in CONNECTIONS:
                count = self._count * TIMES[at_once]
                # Warm up with as many connections: some servers start a process for each.
                send(served, 2 * at_once, size=SMALL, at_once=at_once, keep=True)
                began = time.monotonic()
                send(served, count, size=SMALL, at_once=at_once, keep=True)
                figures[f"rate{at_once}"] = count / (time.monotonic() - began)
        return figures


def file_system_fault() -> str:
    """Return why stored messages cannot be measured, or an empty string."""
    if not find_program("smtp-source"):
        return "smtp-source is not installed"
    if FileSystem.of_temporary_files().kind in {"tmpfs", "ramfs"}:
        return f"{tempfile.gettempdir()} is in memory, where no sync takes time: set TMPDIR"
    return ""
