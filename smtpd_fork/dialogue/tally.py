"""Tally: what a server's sessions have done, in figures for metrics and the status page.

A count is a plain integer that goes up where the thing happens, in the loop's one thread: it costs
what a test of whether anybody counts would cost. What costs more (the clock, the bytes of every
read) is measured only if it was asked for.
"""

from __future__ import annotations

import functools
import inspect
import time
from bisect import bisect_left
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["BOUNDS", "HOOKS", "OUTCOMES", "Latency", "Tally"]

BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
          30.0, 60.0, 300.0)  # fmt: skip
"""Seconds, the upper bounds of a latency's buckets: from a look into a table in memory to the
longest that a handler may take (``--handler-timeout``)."""

OUTCOMES = {
    "accepted": "a handler or a sink took it: 250",
    "rejected": "a handler said 5xx",
    "deferred": "a handler or a sink said 4xx",
    "unclaimed": "no handler took it: 451",
    "failed": "a handler raised, or took too long: 451",
    "too_big": "over --max-message-size, declared or in fact: 552",
    "malformed": "bare CR or LF, NUL, or too long a line: 550, 500",
    "no_room": "--max-buffered was spent: 452",
    "aborted": "the client went, or its time was over, before the answer",
}
"""What becomes of a message that was begun; each has a count of that name in :class:`Tally`."""

HOOKS = (
    *("CONNECT", "HELO", "EHLO", "STARTTLS", "AUTH", "PROXY", "MAIL", "RCPT", "DATA", "RSET"),
    *("NOOP", "VRFY", "QUIT", "DISCONNECT"),
)
"""The hooks that sessions ask."""


class Latency:
    """A histogram of seconds, of fixed buckets."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)  # by bucket, and one more past the last
        self.total = 0.0  # their sum in seconds

    def observe(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds


class Tally:
    """The counts of one server's sessions; only ever grow.

    :param timing: whether the clock is looked at as well: latencies of hooks and sinks, the
        loop's lag, and the bytes of every read
    """

    __slots__ = (
        *OUTCOMES,
        *("content", "hooks", "lag", "received", "sinks", "timing", "tls_done", "tls_failed"),
    )

    def __init__(self, *, timing: bool = False) -> None:
        self.timing = timing
        self.accepted = self.rejected = self.deferred = self.unclaimed = self.failed = 0
        self.too_big = self.malformed = self.no_room = self.aborted = 0
        self.received = 0  # bytes that clients sent, after TLS; only with *timing*
        self.content = 0  # bytes of the messages that were accepted
        self.tls_done = self.tls_failed = 0  # TLS handshakes that led to a session, or did not
        self.hooks: dict[str, Latency] = {}
        self.sinks: dict[str, Latency] = {}
        self.lag = Latency()  # of the event loop, each time that it was measured

    def answered(self, digit: str) -> None:
        """Count a message by the first digit of what a handler said to it."""
        if digit == "2":
            self.accepted += 1
        elif digit == "5":
            self.rejected += 1
        else:
            self.deferred += 1

    def outcomes(self) -> dict[str, int]:
        """Return the messages by outcome."""
        return {outcome: getattr(self, outcome) for outcome in OUTCOMES}

    def timed_hook(self, name: str, hook: Callable[..., Any]) -> Callable[..., Any]:
        """Return a handler's hook that is measured, if that is wanted."""
        if not self.timing or name not in HOOKS:
            return hook
        return _timed(hook, self.hooks.setdefault(name, Latency()))

    def timed_sink(self, name: str, hook: Callable[..., Any]) -> Callable[..., Any]:
        """Return a sink's handle_DATA that is measured, if that is wanted."""
        return _timed(hook, self.sinks.setdefault(name, Latency())) if self.timing else hook


def _timed(hook: Callable[..., Any], latency: Latency) -> Callable[..., Any]:
    @functools.wraps(hook)
    def timed(*args: Any) -> Any:
        begun = time.perf_counter()
        answer = hook(*args)
        if inspect.isawaitable(answer):
            return _await(answer, begun, latency)
        latency.observe(time.perf_counter() - begun)  # of handle_STARTTLS
        return answer

    # For never_waits().
    timed.measured_hook = getattr(hook, "measured_hook", hook)  # type: ignore[attr-defined]
    return timed


async def _await(answer: Any, begun: float, latency: Latency) -> Any:
    try:
        return await answer
    finally:
        latency.observe(time.perf_counter() - begun)
