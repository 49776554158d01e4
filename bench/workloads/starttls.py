"""Messages over STARTTLS."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from bench.contenders.base import Contender, Needs, Served, serving
from bench.process import BenchError, Client
from bench.workloads.base import MICRO, Workload
from bench.workloads.mail import CPU, RATE, SMALL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.certificates import Certificates
    from bench.workloads.base import Metric

__all__ = ["StartTls"]

AT_ONCE = 10


class StartTls(Workload):
    """One small message per connection, over STARTTLS."""

    key = "W7"
    title = "One 5 KiB message per connection, over STARTTLS"
    metrics: ClassVar[Sequence[Metric]] = (
        CPU,
        CPU._replace(key="resumed", label="with resumption"),
        RATE,
        RATE._replace(key="resumed rate", label="with resumption"),
    )

    def __init__(self, count: int) -> None:
        self._count = count

    @property
    def how(self) -> str:
        """The method of measurement."""
        return (
            f"As W1, by a client of this project (smtp-source has no TLS) with {AT_ONCE} threads: "
            "each connection begins with STARTTLS and a handshake of TLS 1.3, with a key for ECDSA "
            f"P-256. {self._count:,} messages per round with full handshakes, and as many that "
            "resume the previous session. The client is in Python, and may limit the messages per "
            "second."
        )

    def measure(self, contender: Contender, certificates: Certificates) -> dict[str, float]:
        """Measure CPU time and wall time, with full handshakes and with resumed sessions."""
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
            client.request(f"{2 * AT_ONCE} full")
            client.request(f"{2 * AT_ONCE} resumed")
            cpu, rate, _ = self._cost(served, client, count, "full")
            cpu_resumed, rate_resumed, resumed = self._cost(served, client, count, "resumed")
        if resumed < count - AT_ONCE:  # The first handshake of each thread is a full one.
            raise BenchError(f"only {resumed:.0f} of {count} sessions were resumed")
        return {"cpu": cpu, "rate": rate, "resumed": cpu_resumed, "resumed rate": rate_resumed}

    def _cost(
        self, served: Served, client: Client, count: int, handshake: str
    ) -> tuple[float, float, float]:
        """Return microseconds per message, messages per second, and resumed sessions."""
        before = served.cpu_seconds()
        answer = client.request(f"{count} {handshake}")
        used = served.cpu_seconds() - before
        return MICRO * used / count, count / answer["seconds"], answer["resumed"]
