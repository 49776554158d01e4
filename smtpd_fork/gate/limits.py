"""Limits: the gate's figures as plain data."""

from __future__ import annotations

from dataclasses import dataclass

from smtpd_fork.config import LIMIT_CONNECTIONS, MAX_FROM_IP

__all__ = ["Limits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How many sessions a gate lets in at once.

    :param limit_connections: sessions in all, at least 1
    :param max_from_ip: sessions from one address; 0 is no limit. Does not override the former.
    :raises ValueError: a figure out of its range
    """

    limit_connections: int = LIMIT_CONNECTIONS
    max_from_ip: int = MAX_FROM_IP

    def __post_init__(self) -> None:
        if self.limit_connections < 1:
            raise ValueError(f"limit_connections must be at least 1, not {self.limit_connections}")
        if self.max_from_ip < 0:
            raise ValueError(f"max_from_ip must be 0 (no limit) or more, not {self.max_from_ip}")
