"""The fleet as all processes see it, each of them a node."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from smtpd_fork.fleet.figures import STATES
from smtpd_fork.supervisor.merged_sinks import added

if TYPE_CHECKING:
    from smtpd_fork.fleet.figures import Figures

__all__ = ["merged_fleet"]


def merged_fleet(parts: Iterable[Figures | None]) -> Figures | None:
    """Return the worst state of all processes, and the sums of what each has counted."""
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
        outcomes=dict(added(part.outcomes for part in found)),
        episodes=sum(part.episodes for part in found),
    )
