"""View: the nodes of a fleet and what it counts, for an administrator. It changes nothing."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from smtpd_fork.fleet.sync import FleetError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smtpd_fork.fleet.link import Link
    from smtpd_fork.gate.rules.fleet import FleetCheck

__all__ = ["MOST_NODES", "Held", "NodeLine", "NodeView", "View", "ViewOf", "view_of"]

MOST_NODES = 100
"""Nodes of one answer, which may have 64 KiB."""

ALL_NODES = 1000
"""Nodes that are shown."""


LATEST = 1 << 32
"""Seconds of the epoch: the year 2106."""


class NodeLine(msgspec.Struct, array_like=True):
    """A node, as the fleet has it.

    :ivar lease: milliseconds left
    :ivar about: what it says of itself, as JSON
    """

    node: str
    lease: int
    slots: int
    sessions: int
    waits: bool
    about: str


class View(msgspec.Struct, array_like=True):
    """An answer.

    :ivar living: number of all nodes
    :ivar nodes: some of them
    :ivar held: for each key, its sessions by node
    :ivar ahead: for each key that is a rate, microseconds by which it is ahead
    """

    living: int
    nodes: list[NodeLine]
    held: list[list[tuple[str, int]]]
    ahead: list[int]


class NodeView(msgspec.Struct):
    """A node.

    :ivar node: its id, which names the process
    :ivar name: as it is configured
    :ivar since: when it began, in seconds of the epoch
    :ivar slots: of the fleet, that it holds
    :ivar lease: seconds left
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


class Held(msgspec.Struct):
    """What is counted for one limit of a client.

    :ivar rule: name of its option
    :ivar key: the client or the network
    :ivar limit: sessions at once; of a rate, in its time
    :ivar sessions: those that count now
    :ivar nodes: sessions by name of the node; of a rate it is not known
    """

    rule: str
    key: str
    limit: int
    sessions: int
    nodes: dict[str, int] = {}


class ViewOf(NamedTuple):
    """The nodes, and what is counted for the checks that were asked about, in their order."""

    nodes: list[NodeView]
    held: list[Held]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(View)


async def view_of(link: Link, checks: Sequence[FleetCheck] = ()) -> ViewOf:
    """Return all nodes, and what the fleet counts for *checks*.

    :raises FleetError: the fleet cannot be asked
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
    return ViewOf(nodes, [_held(*each) for each in counted])


async def _ask(link: Link, keys: list[str], rates: list[bool], after: int) -> View:
    data = await link.ask("view", keys, _encoder.encode((after, rates)))
    try:
        return _decoder.decode(data)  # type: ignore[arg-type]  # what is no bytes is an error
    except (msgspec.MsgspecError, ValueError, RecursionError, TypeError):
        raise FleetError("the answer cannot be read") from None


def _node(line: NodeLine) -> NodeView:
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


def _held(check: FleetCheck, by_node: list[tuple[str, int]], ahead: int) -> Held:
    limit = check.limit
    if check.interval:
        return Held(limit.rule, check.name, limit.limit, -(-ahead // check.interval))
    nodes: Counter[str] = Counter()
    for node, count in by_node:
        nodes[_name(node)] += count
    ordered = sorted(nodes.items(), key=lambda each: (-each[1], each[0]))
    return Held(limit.rule, check.name, limit.limit, nodes.total(), dict(ordered))
