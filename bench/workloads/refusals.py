"""Refused connections: the cost of each, and the effect of a flood of them on other clients."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from bench.contenders.base import Contender, Needs, serving
from bench.process import BenchError, Client
from bench.workloads.base import MICRO, Metric, Workload

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.certificates import Certificates

__all__ = ["Flood", "Refusal"]

AT_ONCE = 20
WARM_UP = 200

FLOODER = "127.0.0.3"
INNOCENT = "127.0.0.2"
LIMIT_IN_FLOOD = 5
"""More than one, because the innocent client's previous session may still be closing."""

PAUSE = 0.001
"""Seconds between two probes."""

TOLERATED = 0.01
"""Fraction of the refusals that the client may see as a reset or an early end of the connection."""


def _check(answer: dict[str, float]) -> None:
    """Check that clients were refused, and received the reply.

    :raises BenchError: many did not receive 421
    """
    if answer["other"] > TOLERATED * (answer["refused"] + answer["other"]):
        raise BenchError(
            f"{answer['other']:.0f} clients were not answered 421, {answer['refused']:.0f} were"
        )


class Refusal(Workload):
    """The cost of a refused connection."""

    key = "W5"
    title = "A refused connection"
    metrics: ClassVar[Sequence[Metric]] = (
        Metric("cpu", "CPU per refusal", "us", compared=True),
        Metric("rate", "refusals per second", ""),
    )

    def __init__(self, count: int) -> None:
        self._count = count

    @property
    def how(self) -> str:
        """The method of measurement."""
        return (
            "The server allows one session per address, and one is open. From the same address "
            f"{AT_ONCE} clients at once connect, read the reply and close, {self._count:,} times "
            f"in all. The round fails if more than {TOLERATED:.0%} of the replies are not 421."
        )

    def measure(self, contender: Contender, certificates: Certificates) -> dict[str, float]:
        """Measure the CPU time of the refusals."""
        count = contender.share(self._count)
        with serving(contender, Needs(limit=1), certificates) as served:
            # The probe at the start has another address, so it does not count for the clients.
            where = {"port": served.port, "source": INNOCENT, "at_once": AT_ONCE}
            with Client("knock", served.folder, hold=1, **where) as warm_up:
                warm_up.receive(60)
                warm_up.request(str(WARM_UP))
            served.cpu_seconds()
            with Client("knock", served.folder, hold=1, **where) as knocker:
                knocker.receive(60)
                before = served.cpu_seconds()
                answer = knocker.request(str(count))
                used = served.cpu_seconds() - before
        _check(answer)
        answered = answer["refused"] + answer["other"]
        return {"cpu": MICRO * used / answered, "rate": answered / answer["seconds"]}


class Flood(Workload):
    """The effect of a flood on other clients."""

    key = "W6"
    title = "Time to the greeting of other clients during a flood of refusals"
    metrics: ClassVar[Sequence[Metric]] = (
        Metric("p99", "p99", "ms", compared=True),
        Metric("p50", "p50", "ms", compared=True),
        Metric("quiet", "p99 without a flood", "ms"),
        Metric("rate", "refusals per second", ""),
    )

    def __init__(self, probes: int) -> None:
        self._probes = probes

    @property
    def how(self) -> str:
        """The method of measurement."""
        return (
            f"The server allows {LIMIT_IN_FLOOD} sessions per address. {FLOODER} holds as many, "
            f"and {AT_ONCE} more clients of that address connect, are refused, and connect again "
            f"as fast as they can. Meanwhile {INNOCENT} connects {self._probes:,} times, "
            f"{1000 * PAUSE:g} ms after its last session ended, and measures the time from connect "
            "to the greeting; it does the same before the flood. Server and clients share the "
            "machine: with few cores the result includes the time that the client waited for one."
        )

    def measure(self, contender: Contender, certificates: Certificates) -> dict[str, float]:
        """Measure the time to the greeting without a flood and during one."""
        with (
            serving(contender, Needs(limit=LIMIT_IN_FLOOD), certificates) as served,
            Client(
                "probe", served.folder, port=served.port, source=INNOCENT, pause=PAUSE
            ) as innocent,
            Client(
                "knock",
                served.folder,
                port=served.port,
                source=FLOODER,
                at_once=AT_ONCE,
                hold=LIMIT_IN_FLOOD,
            ) as flooder,
        ):
            flooder.receive(60)
            quiet = innocent.request(str(self._probes))
            flooder.send("flood")
            innocent.request(str(max(20, self._probes // 10)))
            flooded = innocent.request(str(self._probes))
            answer = flooder.request("stop")
        _check(answer)
        return {
            "p50": flooded["p50"],
            "p99": flooded["p99"],
            "quiet": quiet["p99"],
            "rate": answer["refused"] / answer["seconds"],
        }
