"""Tally: counters of a server's sessions, for metrics and the status page.

A counter is an integer that is incremented where the event occurs, in the loop's thread; that is as
fast as a test whether counting is enabled. Slower measurements (the clock, the bytes of every read)
are made only if enabled.
"""

from __future__ import annotations

import functools
import inspect
import time
from bisect import bisect_left
from typing import TYPE_CHECKING, Any

from aiosmtpd.smtp import MISSING

from smtpd_fork.dialogue import replies
from smtpd_fork.dialogue.commands import COMMANDS
from smtpd_fork.dialogue.rejections import Rejections

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["BOUNDS", "HOOKS", "OUTCOMES", "AnswerCounts", "Latency", "Tally", "by_class"]

BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
          30.0, 60.0, 300.0)  # fmt: skip
"""Upper bounds of the buckets of a latency, in seconds: from a lookup in memory to the longest
duration of a handler (``--handler-timeout``)."""

OUTCOMES = {
    "accepted": "a handler or a sink accepted it: 250",
    "rejected": "a handler answered 5xx",
    "deferred": "a handler or a sink answered 4xx",
    "unclaimed": "no handler accepted it: 451",
    "failed": "a handler raised an exception, or took too long: 451",
    "too_big": "larger than --max-message-size, declared or received: 552",
    "malformed": "bare CR or LF, NUL, or a line that is too long: 550, 500",
    "looping": "more than --max-hops Received fields: 554",
    "no_room": "--max-buffered was used up: 452",
    "aborted": "the client disconnected or timed out before the reply",
}
"""The outcomes of a message that was begun; :class:`Tally` has a counter for each."""

OTHER = "other"
"""The name for all unknown commands."""

COUNTED = ("CONNECT", *(command.name for command in COMMANDS), OTHER)
"""The commands by which replies are counted."""

ReplyCounts = dict[int, int]
"""Counts by the first octet of the reply: ``ord("2")`` to ``ord("5")``."""

HOOKS = (
    *("CONNECT", "HELO", "EHLO", "STARTTLS", "AUTH", "PROXY", "MAIL", "RCPT", "DATA", "RSET"),
    *("NOOP", "VRFY", "QUIT", "DISCONNECT"),
)
"""The hooks that are measured."""


class Latency:
    """A histogram of durations with fixed buckets."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)  # by bucket, and one for longer durations
        self.total = 0.0  # their sum in seconds

    def observe(self, seconds: float) -> None:
        """Count a duration."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds


class AnswerCounts:
    """The answers of one sink, or of the program of one filter.

    :ivar replies: counts by the first octet of the reply, ``ord("2")`` to ``ord("5")``: one for
        each message, or for each recipient if the sink returns several replies; for a filter, one
        for each request, ``ord("2")`` if the program has no objection
    :ivar latency: the durations of the answers
    """

    __slots__ = ("latency", "replies")

    def __init__(self) -> None:
        self.replies: ReplyCounts = dict.fromkeys(b"245", 0)
        self.latency = Latency()

    def note(self, answer: Any, seconds: float) -> None:
        """Count an answer: a reply, several replies, or MISSING."""
        self.latency.observe(seconds)
        if answer is MISSING:
            answer = "2"
        for reply in answer if isinstance(answer, (list, tuple)) else [answer]:
            first = ord(reply[0]) if isinstance(reply, str) and reply else 0
            self.replies[first if first in self.replies else ord("4")] += 1


def by_class(counts: Mapping[str, AnswerCounts]) -> dict[tuple[str, str], int]:
    """Return the number of replies by name and class, as in ``("lmtp", "4xx")``."""
    return {
        (name, f"{first:c}xx"): count
        for name, each in counts.items()
        for first, count in each.replies.items()
    }


class Tally:
    """The counters of one server's sessions, which never decrease.

    :param timing: whether slower measurements are made as well: latencies of hooks and sinks, the
        event-loop lag, and the bytes of every read
    """

    __slots__ = (
        *OUTCOMES,
        *(
            "content",
            "filters",
            "fleet",
            "forged_results",
            "hooks",
            "lag",
            "received",
            "rejections",
            "replies",
            "sinks",
            "timing",
            "tls_done",
            "tls_failed",
        ),
    )

    def __init__(self, *, timing: bool = False) -> None:
        self.timing = timing
        self.accepted = self.rejected = self.deferred = self.unclaimed = self.failed = 0
        self.too_big = self.malformed = self.looping = self.no_room = self.aborted = 0
        self.received = 0  # bytes that clients sent, after TLS; only with *timing*
        self.content = 0  # bytes of accepted messages
        self.forged_results = 0  # messages with forged Authentication-Results
        self.tls_done = self.tls_failed = 0  # successful and failed TLS handshakes
        self.hooks: dict[str, Latency] = {}
        self.sinks: dict[str, AnswerCounts] = {}
        self.filters: dict[str, AnswerCounts] = {}  # filters that query another program
        self.rejections = Rejections()
        self.replies: dict[str, ReplyCounts] = {name: dict.fromkeys(b"2345", 0) for name in COUNTED}
        self.fleet = Latency()  # round trips to the fleet
        self.lag = Latency()  # event-loop lag

    def replies_by_class(self) -> dict[tuple[str, str], int]:
        """Return the number of replies by command and class, ``("RCPT", "5xx")``, without zeros."""
        return {
            (command, f"{first:c}xx"): count
            for command, counts in self.replies.items()
            for first, count in counts.items()
            if count
        }

    def outcomes(self) -> dict[str, int]:
        """Return the number of messages by outcome."""
        return {outcome: getattr(self, outcome) for outcome in OUTCOMES}

    def timed_hook(self, name: str, hook: Callable[..., Any]) -> Callable[..., Any]:
        """Return a handler's hook, which measures its duration if that is enabled."""
        if not self.timing or name not in HOOKS:
            return hook
        return _timed(hook, self.hooks.setdefault(name, Latency()))

    def sink(self, name: str) -> AnswerCounts:
        """Return the counts of a sink."""
        return self.sinks.setdefault(name, AnswerCounts())

    def filter(self, name: str) -> AnswerCounts:
        """Return the counts of a filter that queries a program."""
        return self.filters.setdefault(name, AnswerCounts())

    def counted_sink(self, name: str, hook: Callable[..., Any]) -> Callable[..., Any]:
        """Return a hook of a sink, with measurement of its answers if that is enabled."""
        if not self.timing:
            return hook
        own = self.sink(name)

        @functools.wraps(hook)
        async def counted(*args: Any) -> Any:
            begun = time.perf_counter()
            answer: Any = replies.LOCAL_ERROR
            try:
                answer = await hook(*args)
            finally:
                own.note(answer, time.perf_counter() - begun)
            return answer

        counted.measured_hook = hook  # type: ignore[attr-defined]  # for never_waits()
        return counted


def _timed(hook: Callable[..., Any], latency: Latency) -> Callable[..., Any]:
    @functools.wraps(hook)
    def timed(*args: Any) -> Any:
        begun = time.perf_counter()
        answer = hook(*args)
        if inspect.isawaitable(answer):
            return _await(answer, begun, latency)
        latency.observe(time.perf_counter() - begun)  # handle_STARTTLS is no coroutine
        return answer

    # For never_waits().
    timed.measured_hook = getattr(hook, "measured_hook", hook)  # type: ignore[attr-defined]
    return timed


async def _await(answer: Any, begun: float, latency: Latency) -> Any:
    try:
        return await answer
    finally:
        latency.observe(time.perf_counter() - begun)
