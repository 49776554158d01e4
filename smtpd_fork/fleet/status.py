"""FleetStatus: the state of a fleet as one node sees it, for the status and the metrics."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from smtpd_fork.sanitizer import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from smtpd_fork.fleet.fleet import Fleet
    from smtpd_fork.gate import Refusal

__all__ = ["OUTCOMES", "STATES", "Counts", "FleetStatus", "fleet_status"]

OUTCOMES = ("admitted", "refused", "alone")
"""The outcomes of questions about clients; ``alone``: decided without the fleet."""

STATES = ("up", "late", "down")


class Counts:
    """Counts the outcomes of a node's questions, and measures the time of the answers.

    :ivar outcomes: clients by outcome (:data:`OUTCOMES`)
    :ivar round_trip: seconds that the last answer took
    :ivar measure: called with the round trip of each answer
    """

    def __init__(self) -> None:
        self.outcomes = dict.fromkeys(OUTCOMES, 0)
        self.round_trip = 0.0
        self.measure: Callable[[float], None] = _ignore

    def answered(self, seconds: float, refusals: Sequence[Refusal | None]) -> None:
        """Count an answer; *refusals* has an item for each client."""
        self.round_trip = seconds
        self.measure(seconds)
        refused = len(refusals) - refusals.count(None)
        self.outcomes["refused"] += refused
        self.outcomes["admitted"] += len(refusals) - refused


def _ignore(_: float) -> None:
    """Do nothing."""


class FleetStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a fleet as one node sees it.

    :ivar state: one of :data:`STATES`
    :ivar nodes: number of live nodes, including this one, in the last answer
    :ivar sessions: of all nodes, in the last answer
    :ivar limit: maximum sessions of all nodes together; 0: no limit
    :ivar slots: the fleet's slots that this node holds
    :ivar free: how many of these slots are free
    :ivar round_trip: seconds that the last answer took
    :ivar down_since: when the fleet went out of reach, in seconds since the epoch; None: it is not
    :ivar down: seconds since then
    :ivar reason: why it is out of reach
    :ivar outcomes: clients by outcome (:data:`OUTCOMES`)
    :ivar episodes: how often it went out of reach
    """

    state: str
    nodes: int
    sessions: int
    limit: int
    slots: int
    free: int
    round_trip: float
    down_since: float | None
    down: float
    reason: str
    outcomes: dict[str, int]
    episodes: int


def fleet_status(fleet: Fleet | None) -> FleetStatus | None:
    """Return the status of a fleet; None without a fleet.

    Also None if the nodes are only the processes of one supervisor.
    """
    if fleet is None or fleet.share.processes > 1:
        return None
    share, episodes = fleet.share, fleet.episodes
    slots = share.slots if share.connections else 0
    down = time.monotonic() - episodes.since if episodes.reason else 0.0
    return FleetStatus(
        state=str(fleet.state),
        nodes=fleet.node.nodes,
        sessions=fleet.node.others + fleet.sessions,
        limit=share.connections,
        slots=slots,
        free=max(0, slots - fleet.sessions) if slots else 0,
        round_trip=round(fleet.counts.round_trip, 6),
        down_since=round(time.time() - down, 1) if episodes.reason else None,
        down=round(down, 1),
        reason=printable(episodes.reason),
        outcomes=dict(fleet.counts.outcomes),
        episodes=episodes.count,
    )
