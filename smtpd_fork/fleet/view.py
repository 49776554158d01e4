"""View: reads the nodes and the counts of a fleet, for an administrator. It changes nothing."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from smtpd_fork.fleet.sync import FleetError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smtpd_fork.fleet.link import Link
    from smtpd_fork.gate.rules.fleet import FleetCheck

__all__ = ["MOST_NODES", "FleetView", "LimitCount", "NodeEntry", "NodeView", "View", "read_view"]

MOST_NODES = 100
"""Maximum number of nodes in one answer, which may have 64 KiB."""

ALL_NODES = 1000
"""Maximum number of nodes that are read."""


LATEST = 1 << 32
"""The latest time that is accepted, in seconds since the epoch: the year 2106."""


class NodeEntry(msgspec.Struct, array_like=True):
    """A node in an answer.

    :ivar lease: milliseconds until the lease ends
    :ivar about: its description of itself, as JSON
    """

    node: str
    lease: int
    slots: int
    sessions: int
    waits: bool
    about: str


class View(msgspec.Struct, array_like=True):
    """An answer.

    :ivar living: number of live nodes
    :ivar nodes: one page of these nodes
    :ivar held: for each key its sessions by node; empty for a rate
    :ivar ahead: for each key, if it is a rate, the microseconds by which its sessions are ahead
    """

    living: int
    nodes: list[NodeEntry]
    held: list[list[tuple[str, int]]]
    ahead: list[int]


class NodeView(msgspec.Struct):
    """A node.

    :ivar node: the id of the process
    :ivar name: the configured name
    :ivar since: when it was started, in seconds since the epoch
    :ivar slots: how many of the fleet's slots it holds
    :ivar lease: seconds until its lease ends
    :ivar waits: whether its clients wait for a slot of the fleet
    """

    node: str
    name: str = ""
    host: str = ""
    pid: int = 0
    version: str = ""
    since: float = 0.0
    sessions: int = 0
    slots: int = 0
    lease: float = 0.0
    waits: bool = False


class LimitCount(msgspec.Struct):
    """The count of the fleet for one limit of a client.

    :ivar rule: name of the option
    :ivar key: the client or the network
    :ivar limit: maximum of concurrent sessions; for a rate, of new sessions in its period
    :ivar sessions: the sessions that are counted now
    :ivar nodes: sessions by name of the node; empty for a rate
    """

    rule: str
    key: str
    limit: int
    sessions: int
    nodes: dict[str, int] = {}


class FleetView(NamedTuple):
    """The nodes of a fleet, and the counts for the checks, in their order."""

    nodes: list[NodeView]
    held: list[LimitCount]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(View)


async def read_view(link: Link, checks: Sequence[FleetCheck] = ()) -> FleetView:
    """Return all nodes, and the counts of the fleet for *checks*.

    :raises FleetError: the fleet does not answer, or the answer is invalid
    """
    keys = [check.key for check in checks]
    rates = [bool(check.interval) for check in checks]
    view = await _ask(link, keys, rates, 0)
    if len(view.held) != len(keys) or len(view.ahead) != len(keys):
        raise FleetError("the answer cannot be read")
    nodes = [_node(each) for each in view.nodes]
    while len(nodes) < min(view.living, ALL_NODES):
        more = (await _ask(link, [], [], len(nodes))).nodes
        if not more:
            break
        nodes += map(_node, more)
    counted = zip(checks, view.held, view.ahead, strict=True)
    return FleetView(nodes, [_limit_count(*each) for each in counted])


async def _ask(link: Link, keys: list[str], rates: list[bool], after: int) -> View:
    data = await link.ask("view", keys, _encoder.encode((after, rates)))
    try:
        return _decoder.decode(data)  # type: ignore[arg-type]  # other types raise an error
    except (msgspec.MsgspecError, ValueError, RecursionError, TypeError):
        raise FleetError("the answer cannot be read") from None


def _node(line: NodeEntry) -> NodeView:
    try:
        node = msgspec.json.decode(line.about, type=_About)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        node = _About()
    return NodeView(
        line.node,
        name=node.name or _name(line.node),
        host=node.host,
        pid=node.pid,
        version=node.version,
        since=node.since if 0 <= node.since < LATEST else 0.0,
        sessions=line.sessions,
        slots=line.slots,
        lease=line.lease / 1000,
        waits=line.waits,
    )


class _About(msgspec.Struct):
    name: str = ""
    host: str = ""
    pid: int = 0
    version: str = ""
    since: float = 0.0


def _name(node: str) -> str:
    return node.rpartition("-")[0] or node


def _limit_count(check: FleetCheck, by_node: list[tuple[str, int]], ahead: int) -> LimitCount:
    limit = check.limit
    if check.interval:
        return LimitCount(limit.rule, check.name, limit.limit, -(-ahead // check.interval))
    nodes: Counter[str] = Counter()
    for node, count in by_node:
        nodes[_name(node)] += count
    ordered = sorted(nodes.items(), key=lambda each: (-each[1], each[0]))
    return LimitCount(limit.rule, check.name, limit.limit, nodes.total(), dict(ordered))
