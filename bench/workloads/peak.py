"""The memory that one large message needs while it is received."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from bench.contenders.base import MIB, Contender, Needs, find_program, serving
from bench.proc import forget_peak, peak_bytes
from bench.workloads.base import Metric, Workload
from bench.workloads.mail import SMALL, send

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.certificates import Certificates

__all__ = ["PeakMemory"]

SIZE = 50 * MIB
ALLOWED = 64 * MIB
WARM_UP = 20


class PeakMemory(Workload):
    """The memory that one large message needs while it is received."""

    key = "W8"
    title = "Peak memory of one 50 MiB message"
    metrics: ClassVar[Sequence[Metric]] = (
        Metric("peak", "peak memory / size of the message", "", compared=False),
    )

    @property
    def how(self) -> str:
        """The method of measurement."""
        return (
            f"One message of {SIZE:,} bytes after {WARM_UP} small ones; the high-water mark of "
            "the server's resident memory (VmHWM, reset before), minus the resident memory before, "
            "divided by the size of the message. A server that passes the whole message to its "
            "handler cannot be below 1; a server that discards it on arrival is near 0."
        )

    def missing(self) -> str:
        """Check for the client."""
        return "" if find_program("smtp-source") else "smtp-source is not installed"

    def measure(self, contender: Contender, certificates: Certificates) -> dict[str, float]:
        """Measure the high-water mark."""
        with serving(contender, Needs(largest=ALLOWED), certificates) as served:
            send(served, WARM_UP, size=SMALL, at_once=1, keep=False)
            served.cpu_seconds()
            before = forget_peak(served.pid)
            send(served, 1, size=SIZE, at_once=1, keep=False)
            served.cpu_seconds()
            return {"peak": max(0, peak_bytes(served.pid) - before) / SIZE}
