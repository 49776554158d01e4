"""Replies of the daemon, as far as the commands read them."""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = ["Explanation", "Kicked", "Limits", "Session", "Sessions", "State", "Status", "Top"]


class Top(msgspec.Struct):
    """A source with many sessions."""

    source: str
    sessions: int


class Status(msgspec.Struct):
    """How it is."""

    version: str
    pid: int
    hostname: str
    state: str
    seconds: float
    sessions: int
    limit: int
    phases: dict[str, int]
    sources: int
    top: list[Top]
    admitted: int
    refused: int
    rules: dict[str, int]
    listeners: list[str]
    limits_changed: list[str]


class Session(msgspec.Struct):
    """One that is in."""

    id: str
    peer: str
    seconds: float
    phase: str
    tls: bool
    messages: int
    helo: str


class Sessions(msgspec.Struct):
    """A page of those who are in."""

    sessions: list[dict[str, Any]]
    next: list[Any] | None


class Kicked(msgspec.Struct):
    """How many were ended."""

    kicked: int


class Limits(msgspec.Struct):
    """What the gate lets in."""

    limits: dict[str, Any]
    changed: list[str]
    until: str | None
    warning: str | None


class State(msgspec.Struct):
    """What the daemon does now."""

    state: str
    sessions: int = 0


class Explanation(msgspec.Struct):
    """What is known of a refusal."""

    id: str
    rule: str
    key: str
    count: int
    limit: int
    reply: str
    cure: str
