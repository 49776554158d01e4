"""Replies of the daemon, as far as the commands read them."""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = [
    "Denial",
    "Denials",
    "Explanation",
    "Fleet",
    "FleetStatus",
    "Held",
    "Kicked",
    "Limits",
    "Node",
    "Reloaded",
    "ServingProcess",
    "Session",
    "Sessions",
    "SinkState",
    "State",
    "Status",
    "Top",
    "Undenied",
]  # fmt: skip


class Top(msgspec.Struct):
    """A client with many sessions."""

    client: str
    sessions: int


class SinkState(msgspec.Struct):
    """A sink or a filter, and the server behind it if it has one."""

    name: str
    replies: dict[str, int] = {}
    average: float = 0.0
    connections: int | None = None
    busy: int = 0
    waiting: int = 0
    down_since: float | None = None
    down: float = 0.0
    reason: str = ""


class ServingProcess(msgspec.Struct):
    """One of the processes of --processes."""

    pid: int
    state: str
    seconds: float
    sessions: int
    limit: int


class FleetStatus(msgspec.Struct):
    """The fleet, as a node sees it."""

    state: str
    nodes: int
    sessions: int
    limit: int
    slots: int
    free: int
    round_trip: float
    down: float
    reason: str


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
    clients: int
    top: list[Top]
    admitted: int
    refused: int
    rules: dict[str, int]
    listeners: list[str]
    limits_changed: list[str]
    denied: int = 0
    messages: dict[str, int] = {}
    rejections: dict[str, int] = {}
    sinks: list[SinkState] = []
    filters: list[SinkState] = []
    processes: list[ServingProcess] = []
    fleet: FleetStatus | None = None


class Node(msgspec.Struct):
    """A node of the fleet."""

    name: str
    host: str
    pid: int
    version: str
    since: float
    sessions: int
    slots: int
    lease: float
    waits: bool
    own: bool


class Held(msgspec.Struct):
    """What the fleet counts for one limit of a client."""

    rule: str
    key: str
    limit: int
    sessions: int
    nodes: dict[str, int]


class Fleet(msgspec.Struct):
    """The fleet and its nodes."""

    fleet: FleetStatus | None
    nodes: list[Node]
    limits: list[Held]


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


class Reloaded(msgspec.Struct):
    """What a reload has changed, and what needs a restart."""

    changes: list[str]
    restart: list[str]


class Denial(msgspec.Struct):
    """A network that is denied at run time; its seconds are those that it has left."""

    network: str
    text: str
    by: str
    since: float
    seconds: float | None
    node: str = ""
    untold: str | None = None


class Undenied(msgspec.Struct):
    """A network that is denied no longer; and why the fleet does not know it yet."""

    network: str
    untold: str | None = None


class Denials(msgspec.Struct):
    """A page of them."""

    denials: list[Denial]
    next: int | None


class State(msgspec.Struct):
    """What the daemon does now."""

    state: str
    sessions: int = 0


class Rejection(msgspec.Struct, rename={"sender": "from"}):
    """A command or message that was rejected in a session."""

    client: str
    command: str
    reply: str
    reason: str
    sender: str = ""
    recipient: str = ""
    helo: str = ""
    score: float = 0.0
    tags: str = ""
    orig_client: str = ""
    orig_queue_id: str = ""
    user: str = ""


class Explanation(msgspec.Struct):
    """What is known of a refusal before the greeting, or of the rejections in a session."""

    id: str
    rule: str = ""
    client: str = ""
    key: str = ""
    count: int = 0
    limit: int = 0
    nodes: dict[str, int] = {}
    reply: str = ""
    origin: str = ""
    cure: str = ""
    rejections: list[Rejection] = []
