"""A node of a fleet: the cost of a Redis request per client, and the delay of the greeting."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from bench.contenders.base import Contender, Needs, serving
from bench.process import Client
from bench.redis_server import RedisServer
from bench.workloads.base import MICRO, Metric, Workload
from bench.workloads.mail import SMALL, send

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.certificates import Certificates

__all__ = ["Fleet"]

AT_ONCE = 20
LIMIT = 100_000
PAUSE = 1 / 300
SOURCE = "127.0.0.2"


class Fleet(Workload):
    """Messages with one connection each, on a single node and on a node of a fleet.

    :param count: messages
    :param probes: connections whose greetings are timed
    """

    key = "W18"
    title = "A node of a fleet"
    metrics: ClassVar[Sequence[Metric]] = (
        Metric("cpu", "CPU per message, one per connection", "us", compared=True),
        Metric("p50", "Time to the greeting, p50", "ms"),
        Metric("p99", "Time to the greeting, p99", "ms"),
    )
    servers: ClassVar[Sequence[str]] = ("all-rules", "fleet")
    compared_with: ClassVar[Sequence[str]] = ("all-rules",)

    def __init__(self, count: int, probes: int) -> None:
        self._count = count
        self._probes = probes

    @property
    def how(self) -> str:
        """The method of measurement."""
        return (
            "The server has all rules on, and one limit per client, two per network and a rate of "
            "each hold over the fleet: redis-server on a unix socket answers about each client. "
            f"{AT_ONCE} connections at once, {self._count:,} messages with a connection each; then "
            f"{self._probes:,} clients one after another, about 300 a second, whose time from "
            "connect to the greeting is measured. The CPU time of Redis is not counted."
        )

    def missing(self) -> str:
        """Check for Redis."""
        return RedisServer.missing()

    def measure(self, contender: Contender, certificates: Certificates) -> dict[str, float]:
        """Measure CPU time, and the time to the greeting."""
        with (
            RedisServer() as redis,
            serving(
                contender, Needs(limit=LIMIT, fleet=f"unix:{redis.path}"), certificates
            ) as served,
        ):
            send(served, AT_ONCE, size=SMALL, at_once=AT_ONCE, keep=False)
            before = served.cpu_seconds()
            send(served, self._count, size=SMALL, at_once=AT_ONCE, keep=False)
            used = served.cpu_seconds() - before
            with Client(
                "probe", served.folder, port=served.port, source=SOURCE, pause=PAUSE
            ) as client:
                answer = client.request(str(self._probes))
        return {"cpu": MICRO * used / self._count, "p50": answer["p50"], "p99": answer["p99"]}
