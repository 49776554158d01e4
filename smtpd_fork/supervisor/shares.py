"""The shares of the processes of a supervisor in the limits of all.

The division loses no connection slot, as the processes share their listening sockets: a process
that is full stops accepting clients, and another one accepts them.
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
"""The settings that are divided among the processes."""

OFF = "0"


def divided(config: DaemonConfig, number: int, of: int) -> DaemonConfig:
    """Return the settings of one process.

    :param number: of the process, from 1
    :param of: how many processes there are
    """
    shares: dict[str, Any] = {
        name: share_of(name, getattr(config, name), number, of) for name in DIVIDED
    }
    return msgspec.structs.replace(config, **shares)


def share_of(name: str, value: Any, number: int, of: int) -> Any:
    """Return the share of a process in the *value* of a setting.

    The first processes get one more each while there is a remainder. A rate is rounded up. 0, which
    means no limit, stays 0.

    :param number: of the process, from 1
    :param of: how many processes there are
    """
    if not value or value == OFF:
        return value
    if name == "tls_failure_rate":
        rate, period = Rate.parse(value), value.partition("/")[2]
        return f"{ceil(rate.sessions / of)}/{period}"
    return max(1, value // of + (number <= value % of))
