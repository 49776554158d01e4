"""Fleet view: the nodes of the fleet, and a client's sessions on them, for the control socket."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from smtpd_fork.control_protocol import Fault, RequestError
from smtpd_fork.fleet.status import fleet_status
from smtpd_fork.fleet.sync import FleetError
from smtpd_fork.gate.client import Client
from smtpd_fork.gate.networks import Network, Prefix, is_ipv4, number_of
from smtpd_fork.sanitizer import printable

if TYPE_CHECKING:
    from smtpd_fork.fleet import Fleet
    from smtpd_fork.fleet.view import NodeView
    from smtpd_fork.gate import Gate, Refusal
    from smtpd_fork.gate.rules.fleet import FleetCheck
    from smtpd_fork.observe.service import Observed

__all__ = ["fleet_view", "sessions_by_node"]


async def fleet_view(server: Observed, client: str | None) -> dict[str, Any]:
    """Return the nodes of the fleet, and its counts for *client*.

    :param client: an address or a network; None: only the nodes
    :raises RequestError: there is no fleet, it is out of reach, or it does not count *client*
    """
    fleet = server.fleet
    if fleet is None:
        raise RequestError(Fault.REFUSED, "this daemon is not in a fleet: it was started without "
                           "--fleet")  # fmt: skip
    checks = [] if client is None else _checks_of(client, server.gate)
    try:
        nodes, held = await fleet.view(checks)
    except FleetError as error:
        if client is not None:
            text = f"the fleet is out of reach: {printable(str(error), 1000)}"
            raise RequestError(Fault.REFUSED, text) from None
        nodes, held = [], []
    return {
        "fleet": fleet_status(fleet),
        "nodes": [_printable(node, own=node.node == fleet.node.name) for node in nodes],
        "limits": [
            {
                **msgspec.structs.asdict(each),
                "key": printable(each.key),
                "nodes": {printable(name): count for name, count in each.nodes.items()},
            }
            for each in held
        ],
    }


async def sessions_by_node(fleet: Fleet | None, gate: Gate, refusal: Refusal) -> dict[str, int]:
    """Return the sessions that led to a refusal by the fleet, by node; empty if unknown."""
    if fleet is None or not refusal.scope or fleet.share.processes > 1:
        return {}
    checks = [
        check
        for check in _checks(gate, refusal.key.partition("/")[0])
        if check.limit.rule == refusal.rule and check.name == refusal.key
    ][:1]
    try:
        nodes, held = await fleet.view(checks)
    except FleetError:
        return {}
    if not refusal.key:  # the limit of all sessions of the fleet
        return {printable(node.name): node.sessions for node in nodes}
    return {printable(name): count for each in held for name, count in each.nodes.items()}


def _printable(node: NodeView, *, own: bool) -> dict[str, Any]:
    fields = msgspec.structs.asdict(node)
    texts = {name: printable(v, 100) for name, v in fields.items() if isinstance(v, str)}
    return {**fields, **texts, "own": own}


def _checks(gate: Gate, host: str) -> list[FleetCheck]:
    limits = gate.limits
    client = Client(host, limits.ipv6_prefix)
    processes = 1 if gate.slots.share is None else gate.slots.share.processes
    found = (limit.check(client) for limit in limits.fleet_limits(processes))
    return [check for check in found if check is not None]


def _checks_of(client: str, gate: Gate) -> list[FleetCheck]:
    """Return the checks by which the fleet counts an address or a network.

    :raises RequestError: *client* is neither, or no limit of the fleet counts it
    """
    shown = printable(client)
    host = client.partition("/")[0]
    if "/" not in client and number_of(host) is not None:
        checks = _checks(gate, host)
    else:
        try:
            first, bits = Network.parse(client)
        except ValueError as error:
            raise RequestError(Fault.REFUSED, f"{shown}: {error}") from None
        name = Prefix(bits, ipv6=not is_ipv4(first)).network_of(first)
        checks = [check for check in _checks(gate, host) if check.name == name]
    if not checks:
        text = f"{shown}: no limit of the fleet counts it (-m, --max-from-net, --rate, --rate-net)"
        raise RequestError(Fault.REFUSED, text)
    return checks
