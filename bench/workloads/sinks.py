"""A large message through each sink of this daemon, and through two milters."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from bench.contenders.base import MIB, Contender, Needs, find_program, serving
from bench.contenders.sinks import SmtpdForkSink, holds_of
from bench.destinations import DESTINATIONS
from bench.peers.held import Holds
from bench.proc import forget_peak, peak_bytes
from bench.workloads.base import Metric, Workload
from bench.workloads.mail import SMALL, send

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.certificates import Certificates

__all__ = ["EverySink"]

SIZE = 25_000_000
ALLOWED = 32 * MIB

WARM_UP = 20

MILLI = 1e3


class EverySink(Workload):
    """One large message through each sink, and through two milters."""

    key = "W14"
    title = "A message of 25 MB through each sink, and two milters"
    metrics: ClassVar[Sequence[Metric]] = (
        Metric("hold", "longest hold of the event loop", "ms"),
        Metric("cpu", "of it CPU time", "ms"),
        Metric("peak", "peak memory / size of the message", ""),
    )
    servers: ClassVar[Sequence[str]] = tuple(each.sink for each in DESTINATIONS)

    @property
    def how(self) -> str:
        """The method of measurement."""
        return (
            f"A message of {SIZE:,} bytes, after {WARM_UP} small ones, to smtpd-fork with each of "
            "its sinks, and with a server of the test behind it: lmtp and relay deliver to "
            "smtp-sink, pipe to `cp /dev/stdin FILE`, webhook to aiohttp's server, redis to "
            "redis-server, nats to nats-server with a max_payload of 64 MiB, s3 to moto. In the "
            "row **two milters** each of two adds fields to the header, before `discard`. A task "
            "in the daemon repeatedly sleeps for 1 ms: a hold is the additional duration of a "
            "sleep, including time in which other processes ran on the CPU; CPU time is that of "
            "the loop's thread during one sleep. Memory as in W8, of the daemon only."
        )

    def missing(self) -> str:
        """Check for the client."""
        return "" if find_program("smtp-source") else "smtp-source is not installed"

    def measure(self, contender: Contender, certificates: Certificates) -> dict[str, float]:
        """Measure the longest delays of the loop and the high-water mark of one sink."""
        assert isinstance(contender, SmtpdForkSink)  # noqa: S101 - for the type checker
        with (
            tempfile.TemporaryDirectory(prefix="smtpd-fork-bench-") as folder,
            contender.destination(Path(folder)) as handlers,
            serving(contender, Needs(largest=ALLOWED, handlers=handlers), certificates) as served,
        ):
            holds = holds_of(served.folder)
            send(served, WARM_UP, size=SMALL, at_once=1, keep=False)
            served.cpu_seconds()
            before = forget_peak(served.pid)
            Holds().write(holds)
            send(served, 1, size=SIZE, at_once=1, keep=False)
            served.cpu_seconds()
            peak = max(0, peak_bytes(served.pid) - before) / SIZE
            longest = Holds.read(holds)
        return {"hold": MILLI * longest.wall, "cpu": MILLI * longest.cpu, "peak": peak}
