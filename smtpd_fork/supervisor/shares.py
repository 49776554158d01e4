"""Shares: the limits of all, divided over the processes of a supervisor.

The division is exact, as the processes share their listening sockets: one that is full stops
accepting, and another one accepts the client.
"""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Any

import msgspec

from smtpd_fork.gate.rules import Rate

if TYPE_CHECKING:
    from smtpd_fork.config import DaemonConfig

__all__ = ["DIVIDED", "divided", "share_of"]

DIVIDED = (
    "limit_connections",
    "reserve",
    "max_buffered",
    "max_buffered_from_ip",
    "tls_failure_rate",
)
"""The settings that are divided."""

OFF = "0"


def divided(config: DaemonConfig, number: int, of: int) -> DaemonConfig:
    """Return the settings of process *number* of so many.

    :param number: from 1
    """
    shares: dict[str, Any] = {
        name: share_of(name, getattr(config, name), number, of) for name in DIVIDED
    }
    return msgspec.structs.replace(config, **shares)


def share_of(name: str, value: Any, number: int, of: int) -> Any:
    """Return the share of a setting; the first processes have the remainder.

    A rate is rounded up. 0, which is no limit, is no limit for each.
    """
    if not value or value == OFF:
        return value
    if name == "tls_failure_rate":
        rate, period = Rate.parse(value), value.partition("/")[2]
        return f"{ceil(rate.sessions / of)}/{period}"
    return max(1, value // of + (number <= value % of))
