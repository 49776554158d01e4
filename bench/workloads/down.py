"""A next hop that is down, and returns."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, ClassVar

from bench.contenders.base import HOST, Contender, Needs, free_port, serving
from bench.contenders.postfix import SmtpSink
from bench.process import BenchError, Client
from bench.workloads.base import Metric, Workload
from bench.workloads.mail import SMALL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.certificates import Certificates

__all__ = ["HopDown"]

RATE = 1000
CONNECTIONS = 200

LEAST_OFFERED = 0.98
"""Fraction of the messages that has to be offered; with fewer, the client was the limit."""

DOWN_STILL = 0.75
"""Seconds from the first message to the return of the next hop."""

AFTERWARDS = 2.0
"""Seconds of messages after the return."""

MODES = (("dot", ",verify=no"), ("rcpt", ""))


class HopDown(Workload):
    """Small messages at a steady pace while the next hop is down.

    :param seconds: duration
    """

    key = "W16"
    title = "1,000 messages per second while the next hop is down"
    metrics: ClassVar[Sequence[Metric]] = (
        Metric("dot", "final dot to 451, p99", "ms"),
        Metric("dot p50", "p50", "ms"),
        Metric("rcpt", "RCPT to 451, p99", "ms"),
        Metric("rcpt p50", "p50", "ms"),
        Metric("back", "first 250 after the hop's return", "ms"),
        Metric("up", "final dot to 250 with the hop up, p99", "ms"),
        Metric("late", "delay of the client itself, p99", "ms"),
    )
    servers: ClassVar[Sequence[str]] = ("smtpd-fork",)

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    @property
    def how(self) -> str:
        """The method of measurement."""
        return (
            f"A client of this project offers {RATE:,} messages of {SMALL:,} bytes per second for "
            f"{self._seconds:g} s over {CONNECTIONS} connections, each when it is due. Nothing "
            "listens at the address that smtpd-fork relays to. The time from the final dot to the "
            "reply 451 with `verify=no`; from RCPT, which is refused, without it. Then smtp-sink "
            "is started while messages are offered: the time from before its start to the first "
            "250, the longer of both. The round fails if the client could not offer "
            f"{100 * LEAST_OFFERED:.0f}% of the messages."
        )

    def missing(self) -> str:
        """Check for the next hop."""
        return SmtpSink().missing()

    def measure(self, contender: Contender, certificates: Certificates) -> dict[str, float]:
        """Measure with and without a query for each recipient."""
        figures = {"back": 0.0, "up": 0.0, "late": 0.0}
        for mode, option in MODES:
            hop = free_port()
            needs = Needs(handlers=[f"relay:{HOST}:{hop}{option}"])
            with (
                serving(contender, needs, certificates) as served,
                Client(
                    *("pace", served.folder),
                    port=served.port,
                    rate=RATE,
                    connections=CONNECTIONS,
                    size=SMALL,
                ) as client,
            ):
                client.receive(60)
                client.request("0.5")
                down = _all_offered(client.request(f"{self._seconds}"))
                if down["accepted"] or down["other"]:
                    raise BenchError("there were other replies than 451 while the hop was down")
                figures[mode] = down["refused_p99"]
                figures[f"{mode} p50"] = down["refused_p50"]
                back, up = self._return(client, hop, certificates)
            figures["back"] = max(figures["back"], back)
            figures["up"] = max(figures["up"], up["accepted_p99"])
            figures["late"] = max(figures["late"], down["late_p99"])
        return figures

    def _return(
        self, client: Client, hop: int, certificates: Certificates
    ) -> tuple[float, dict[str, float]]:
        """Start the next hop; return the milliseconds to the first 250, and the later values."""
        client.send(f"{DOWN_STILL + AFTERWARDS}")
        time.sleep(DOWN_STILL)
        began = time.monotonic()
        with serving(SmtpSink(), Needs(), certificates, hop):
            first = client.receive(60)["first"]
            if first < began:
                raise BenchError("no message was accepted after the hop's return")
            return 1000 * (first - began), client.request("2")


def _all_offered(answer: dict[str, float]) -> dict[str, float]:
    if answer["rate"] < LEAST_OFFERED * RATE:
        raise BenchError(f"the client could offer only {answer['rate']:.0f} messages per second")
    return answer
