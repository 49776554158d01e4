"""The replies of the daemon, with the fields that the commands use."""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = [
    "Denial", "Denials", "Explanation", "Fleet", "FleetStatus", "Held", "Kicked", "Limits", "Node",
    "Reloaded", "ServingProcess", "Session", "Sessions", "SinkState", "State", "Status", "Top",
    "Undenied",
]  # fmt: skip


class Top(msgspec.Struct):
    """A client with many sessions."""

    client: str
    sessions: int


class SinkState(msgspec.Struct):
    """A sink or a filter, and the state of its server if it has one."""

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
    """A process of --processes."""

    pid: int
    state: str
    seconds: float
    sessions: int
    limit: int


class FleetStatus(msgspec.Struct):
    """The state of the fleet, as a node sees it."""

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
    """The state of the daemon."""

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
    """The fleet's count for a limit of a client."""

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
    """An open session."""

    id: str
    peer: str
    seconds: float
    phase: str
    tls: bool
    messages: int
    helo: str


class Sessions(msgspec.Struct):
    """A page of open sessions; ``next`` is None on the last page."""

    sessions: list[dict[str, Any]]
    next: list[Any] | None


class Kicked(msgspec.Struct):
    """The number of sessions that were ended."""

    kicked: int


class Limits(msgspec.Struct):
    """The limits of the gate."""

    limits: dict[str, Any]
    changed: list[str]
    until: str | None
    warning: str | None


class Reloaded(msgspec.Struct):
    """The changes of a reload, and the changed settings that need a restart."""

    changes: list[str]
    restart: list[str]


class Denial(msgspec.Struct):
    """A denied network.

    ``seconds`` is the time left, None without an end; ``untold`` is the reason why the fleet does
    not have the denial yet, or None.
    """

    network: str
    text: str
    by: str
    since: float
    seconds: float | None
    node: str = ""
    untold: str | None = None


class Undenied(msgspec.Struct):
    """A network that is no longer denied; ``untold`` is as in :class:`Denial`."""

    network: str
    untold: str | None = None


class Denials(msgspec.Struct):
    """A page of denied networks; ``next`` is None on the last page."""

    denials: list[Denial]
    next: int | None


class State(msgspec.Struct):
    """The state of the daemon after a request."""

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
    """The explanation of a refusal before the greeting, or of the rejections in a session."""

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
