"""Messages over STARTTLS."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from bench.contenders.base import Contender, Needs, serving
from bench.process import Client
from bench.workloads.base import MICRO, Workload
from bench.workloads.mail import CPU, RATE, SMALL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.certificates import Certificates
    from bench.workloads.base import Metric

__all__ = ["StartTls"]

AT_ONCE = 10


class StartTls(Workload):
    """One small message a connection, over STARTTLS."""

    key = "W7"
    title = "One 5 KiB message a connection, over STARTTLS"
    metrics: ClassVar[Sequence[Metric]] = (CPU, RATE)

    def __init__(self, count: int) -> None:
        self._count = count

    @property
    def how(self) -> str:
        """How it is measured."""
        return (
            f"As W1, by a client of this project (smtp-source has no TLS) with {AT_ONCE} threads: "
            "each connection begins with STARTTLS and a full handshake; the key is ECDSA P-256. "
            f"{self._count:,} messages a round. The client is Python, and may be what limits the "
            "messages a second."
        )

    def measure(self, contender: Contender, certificates: Certificates) -> dict[str, float]:
        """Measure processor time and wall time."""
        count = contender.share(self._count, connections=True)
        with (
            serving(contender, Needs(tls=True), certificates) as served,
            Client(
                "starttls",
                served.folder,
                port=served.port,
                size=SMALL,
                at_once=AT_ONCE,
                authority=str(certificates.authority),
            ) as client,
        ):
            client.ask("20")
            before = served.cpu_seconds()
            heard = client.ask(str(count))
            used = served.cpu_seconds() - before
        return {"cpu": MICRO * used / count, "rate": count / heard["seconds"]}
