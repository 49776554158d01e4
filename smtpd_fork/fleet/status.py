"""FleetStatus: what one node knows of its fleet, for the status and for metrics."""

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
"""Of a client that the fleet is to be asked about; ``alone``: it could not be asked."""

STATES = ("up", "late", "down")


class Counts:
    """What a node counts of its questions, and how fast they are answered.

    :ivar outcomes: clients by outcome (:data:`OUTCOMES`)
    :ivar round_trip: seconds that the last answer took
    :ivar measure: called with each of these
    """

    def __init__(self) -> None:
        self.outcomes = dict.fromkeys(OUTCOMES, 0)
        self.round_trip = 0.0
        self.measure: Callable[[float], None] = _ignore

    def answered(self, seconds: float, refusals: Sequence[Refusal | None]) -> None:
        """Count an answer that has decided about clients."""
        self.round_trip = seconds
        self.measure(seconds)
        refused = len(refusals) - refusals.count(None)
        self.outcomes["refused"] += refused
        self.outcomes["admitted"] += len(refusals) - refused


def _ignore(_: float) -> None:
    """Nothing is measured."""


class FleetStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The figures.

    :ivar state: one of :data:`STATES`
    :ivar nodes: that live, with this one, as of the last answer
    :ivar sessions: of all nodes, as of the last answer
    :ivar limit: sessions of all nodes at once; 0: no limit
    :ivar slots: of the fleet that this node holds
    :ivar free: those of them that are not in use
    :ivar round_trip: seconds that the last answer took
    :ivar down_since: seconds since the epoch; None while the fleet is in reach
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
    """Return the figures of a fleet; None for none, and for the processes of one supervisor."""
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
