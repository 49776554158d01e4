"""Gates with rules, and a clock that a test sets."""

from __future__ import annotations

import time
from typing import Any

from smtpd_fork import Config, Gate, Refusal
from smtpd_fork.gate import limits_of


def new_gate(clock: Any = time.monotonic, **options: Any) -> Gate:
    """Return a gate with these settings; without a limit per client by default."""
    options.setdefault("max_from_ip", 0)
    return Gate(limits=limits_of(Config.build(options)), clock=clock)


def refusal(verdict: object) -> tuple[str, str, int, int]:
    """Return rule, key, count and limit of a verdict, which must be a refusal."""
    assert isinstance(verdict, Refusal), verdict
    return verdict.rule, verdict.key, verdict.count, verdict.limit


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now
