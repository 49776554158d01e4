"""Performance targets of this daemon, and whether a run reached them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from bench.results import Spread, figure

if TYPE_CHECKING:
    from bench.results import Results

__all__ = ["ENOUGH_ROUNDS", "FLOOR", "OURS", "TARGETS", "Target"]

OURS = "smtpd-fork"

FLOOR = "bare"
"""The server with the lowest cost that is possible in Python."""

ENOUGH_ROUNDS = 3
"""Rounds that a verdict needs; other work on the machine distorts fewer rounds too much."""


class Target(NamedTuple):
    """An upper limit of a value, or a lower limit with ``at_least``.

    :ivar against: the server whose value of the same round is the divisor, if any
    :ivar less: the server whose value of the same round is subtracted, if any
    :ivar per: the metric of the same round that is the divisor, if any
    :ivar of: the server that is measured; empty: the one with the largest value of a round
    :ivar at_least: whether the limit is a minimum
    """

    workload: str
    metric: str
    text: str
    limit: float
    unit: str = ""
    against: str = ""
    less: str = ""
    per: str = ""
    of: str = OURS
    at_least: bool = False

    @property
    def wanted(self) -> str:
        """The limit, as a text."""
        if self.against:
            return f"at {'least' if self.at_least else 'most'} {self.limit:g} x {self.against}"
        if self.less:
            return f"at most {self.limit:g} {self.unit} more"
        if self.per:
            return f"at most {self.limit:g} x"
        return f"at most {self.limit:g} {self.unit}".rstrip()

    def values(self, results: Results) -> list[float]:
        """Return the measured values, by round."""
        if self.against:
            return results.ratios(self.workload, self.of, self.against, self.metric)
        if self.less:
            return results.differences(self.workload, self.of, self.less, self.metric)
        if self.per:
            whole = results.values(self.workload, self.of, self.metric)
            parts = results.values(self.workload, self.of, self.per)
            return [a / b for a, b in zip(whole, parts, strict=True) if b > 0]
        if not self.of:
            return results.worst(self.workload, self.metric)
        return results.values(self.workload, self.of, self.metric)

    def measured(self, results: Results) -> str:
        """Return the measured values, as a text."""
        spread = Spread.of(self.values(results))
        if spread is None:
            return results.why_not(self.workload, self.of) or "not measured"
        return f"{spread} {'x' if self.against or self.per else self.unit}".rstrip()

    def verdict(self, results: Results) -> str:
        """Return whether the median reached the target, and in how many rounds."""
        values = self.values(results)
        spread = Spread.of(values)
        if spread is None:
            return "-"
        if len(values) < ENOUGH_ROUNDS:
            return "too few rounds for a verdict"
        met = sum(map(self._meets, values))
        word = "yes" if self._meets(spread.median) else "no"
        times = "" if met in {0, len(values)} else f" (met in {met} of {len(values)} rounds)"
        by = "" if word == "yes" else f", {figure(spread.median / self.limit)} times the target"
        return word + by + times

    def _meets(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit


TARGETS = (
    Target("W1", "cpu", "CPU per message, one per connection", 1.1, against="smtp-sink"),
    Target("W2", "cpu", "CPU per message, many per connection", 0.85, against="smtp-sink"),
    Target("W3", "cpu", "CPU per message of 10 MiB", 0.35, against="smtp-sink"),
    Target("W4", "many", "Memory of an idle session, of 5,000", 2.2, "KiB"),
    Target(
        *("W4", "many", "Five filters: memory of an idle session", 1.05),
        against=OURS,
        of="five-filters",
    ),
    Target("W5", "cpu", "CPU per refusal, 20 clients at once", 35, "us"),
    Target("W6", "p99", "Greeting of others during a flood, p99", 2, "ms"),
    Target(
        "W1",
        "cpu",
        "All rules on: additional CPU per admitted connection",
        10,
        "us",
        less=OURS,
        of="all-rules",
    ),
    Target(
        "W5", "cpu", "All rules on: additional CPU per refusal", 5, "us", less=OURS, of="all-rules"
    ),
    Target("W6", "p99", "Greeting of others during a flood, p99 / without one", 3, per="quiet"),
    Target("W8", "peak", "Peak memory / size of a message", 1.5),
    Target("W9", "ratio", "CPU per message, 5,000 others / 10 others", 1.15),
    Target("W10", "cpu", "Relay: additional CPU per message", 70, "us", less="discard"),
    Target("W10", "cpu", "Relay: CPU per message", 0.3, against="haraka"),
    Target("W10", "cpu", "Relay: CPU per message", 0.25, against="postfix"),
    Target(
        *("W11", "rate", "Messages per second into Dovecot, by LMTP", 0.95),
        against="dovecot",
        at_least=True,
    ),
    Target(
        *("W12", "rate20", "Messages per second into the Maildir, 20 connections", 2),
        against="postfix",
        at_least=True,
    ),
    Target("W13", "look", "Milter that only looks: additional CPU per message", 200, "us"),
    Target("W13", "both", "Milter that edits, by TCP: additional CPU per message", 200, "us"),
    Target("W13", "wait", "Milter that edits, by TCP: additional time to 250", 2, "ms"),
    Target(
        "W14", "hold", "25 MB, any sink, two milters: longest hold of the loop", 50, "ms", of=""
    ),
    Target("W14", "peak", "25 MB, any sink, two milters: peak memory / size", 2.2, of=""),
    Target("W16", "dot", "Hop down: final dot to 451, p99", 5, "ms"),
    Target("W16", "rcpt", "Hop down: RCPT to 451, p99", 5, "ms"),
    Target(
        *("W17", "rate", "Messages per second of two processes, one per connection", 1.7),
        against=OURS,
        of="two-processes",
        at_least=True,
    ),
    Target(
        *("W17", "cpu", "CPU per message of two processes", 1.18),
        against=OURS,
        of="two-processes",
    ),
    Target(
        *("W17", "stored", "Messages per second of two processes, stored on disk", 1.7),
        against=OURS,
        of="two-processes",
        at_least=True,
    ),
    Target(
        "W18",
        "cpu",
        "In a fleet: additional CPU per connection",
        100,
        "us",
        less="all-rules",
        of="fleet",
    ),
    Target(
        "W18",
        "p50",
        "In a fleet: additional time to the greeting, p50",
        0.5,
        "ms",
        less="all-rules",
        of="fleet",
    ),
    Target(
        "W18",
        "p99",
        "In a fleet: additional time to the greeting, p99",
        2,
        "ms",
        less="all-rules",
        of="fleet",
    ),
    Target("W19", "looks", "rspamd: additional CPU per message", 150, "us"),
    Target("W16", "back", "Hop up again: first 250", 1000, "ms"),
)
