"""SinkState: state of a sink or filter: its replies, and the connections to its server."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from smtpd_fork.sanitizer import printable

if TYPE_CHECKING:
    from smtpd_fork.dialogue.tally import AnswerCounts
    from smtpd_fork.hops.peer_status import PeerStatus
    from smtpd_fork.observe.service import Observed

__all__ = ["SinkState", "filter_states", "sink_states"]


class SinkState(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a sink, or of a filter that queries another program.

    :ivar name: as in the log and in metrics
    :ivar replies: number of replies by class: ``2xx``, ``4xx``, ``5xx``; empty if they are not
        counted, as for a single sink without metrics, where they equal the messages of the server
    :ivar average: average time for a message in seconds
    :ivar connections: number of connections to its server; None if it has no server
    :ivar busy: connections that transfer a message
    :ivar waiting: messages that wait for a connection
    :ivar down_since: time since which its server does not answer, in seconds since the epoch; None
        while it answers
    :ivar down: seconds since then
    :ivar reason: why the server is down
    """

    name: str
    replies: dict[str, int] = {}
    average: float = 0.0
    connections: int | None = None
    busy: int = 0
    waiting: int = 0
    down_since: float | None = None
    down: float = 0.0
    reason: str = ""


def sink_states(server: Observed) -> Sequence[SinkState]:
    """Return the states of the sinks of *server*, in order; call it in the server's event loop."""
    counts, sinks = server.tally.sinks, server.chain.sinks
    return [_state(name, counts.get(name), each.status) for name, each in sinks.items()]


def filter_states(server: Observed) -> Sequence[SinkState]:
    """Return the states of the filters that query other programs; like :func:`sink_states`."""
    counts, filters = server.tally.filters, server.chain.filters
    return [_state(name, counts.get(name), each.status) for name, each in filters.items()]


def _state(name: str, counts: AnswerCounts | None, status: PeerStatus | None) -> SinkState:
    replies = {f"{first:c}xx": n for first, n in counts.replies.items() if n} if counts else {}
    messages = sum(counts.latency.counts) if counts else 0
    state = SinkState(
        name=name,
        replies=replies,
        average=round(counts.latency.total / messages, 4) if counts and messages else 0.0,
    )
    if status is None:
        return state
    down = 0.0 if status.down_since is None else max(0.0, time.time() - status.down_since)
    return msgspec.structs.replace(
        state,
        connections=status.connections,
        busy=status.busy,
        waiting=status.waiting,
        down_since=status.down_since,
        down=round(down, 1),
        reason=printable(status.reason),
    )
