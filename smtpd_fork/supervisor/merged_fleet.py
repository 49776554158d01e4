"""The status of the fleet, merged from all processes: each of them is a node."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from smtpd_fork.fleet.status import STATES
from smtpd_fork.supervisor.merged_sinks import sum_counts

if TYPE_CHECKING:
    from smtpd_fork.fleet.status import FleetStatus

__all__ = ["merged_fleet"]


def merged_fleet(parts: Iterable[FleetStatus | None]) -> FleetStatus | None:
    """Return the worst state of all processes, with the sums of their counts."""
    found = [part for part in parts if part is not None]
    if not found:
        return None
    worst = max(found, key=lambda part: (STATES.index(part.state), part.down))
    return msgspec.structs.replace(
        worst,
        nodes=max(part.nodes for part in found),
        sessions=max(part.sessions for part in found),
        slots=sum(part.slots for part in found),
        free=sum(part.free for part in found),
        round_trip=max(part.round_trip for part in found),
        outcomes=dict(sum_counts(part.outcomes for part in found)),
        episodes=sum(part.episodes for part in found),
    )
