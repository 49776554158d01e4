"""Gates with rules, and a clock that a test sets."""

from __future__ import annotations

import time
from typing import Any

from smtpd_fork import Config, Gate, Refusal
from smtpd_fork.gate import limits_of


def gate(clock: Any = time.monotonic, **options: Any) -> Gate:
    options.setdefault("max_from_ip", 0)
    return Gate(limits=limits_of(Config.build(options)), clock=clock)


def refusal(verdict: object) -> tuple[str, str, int, int]:
    assert isinstance(verdict, Refusal), verdict
    return verdict.rule, verdict.key, verdict.count, verdict.limit


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now
