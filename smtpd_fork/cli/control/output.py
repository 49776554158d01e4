"""Output: the text of replies for administrators, without characters that act on a terminal."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from smtpd_fork.sanitizer import printable
from smtpd_fork.units import counted

if TYPE_CHECKING:
    from smtpd_fork.cli.control.replies import (
        Denial,
        Explanation,
        FleetStatus,
        Held,
        Limits,
        Node,
        Rejection,
        Session,
        SinkState,
        Status,
    )

__all__ = [
    "DENIAL_HEADER", "NODE_HEADER", "SESSION_HEADER", "age", "denial_line", "explanation_lines",
    "fleet_limit_line", "fleet_line", "limit_lines", "node_line",
    "not_shared_lines", "say", "say_json", "say_lines", "session_line", "status_lines", "summary",
]  # fmt: skip

LONGEST_LINE = 4000

_SESSION = "{:<14} {:>9} {:<12} {:<3} {:>4} {:<28} {}"

SESSION_HEADER = _SESSION.format("ID", "AGE", "STATE", "TLS", "MSGS", "CLIENT", "HELO")


_DENIAL = "{:<19} {:>9} {:<20} {:<22} {}"

DENIAL_HEADER = _DENIAL.format("NETWORK", "LEFT", "SINCE (UTC)", "BY", "TEXT").rstrip()

_NODE = "{:<20} {:<20} {:>8} {:<9} {:>9} {:>8} {:>6} {:>6} {}"

NODE_HEADER = _NODE.format(
    *("NODE", "HOST", "PID", "VERSION", "AGE", "SESSIONS", "SLOTS", "LEASE", "")
).rstrip()


def say(line: str) -> None:
    """Print a line; characters that are not printable are escaped."""
    sys.stdout.write(printable(line, LONGEST_LINE) + "\n")
    sys.stdout.flush()


def say_lines(lines: Iterable[str]) -> None:
    """Print lines."""
    for line in lines:
        say(line)


def say_json(value: object, *, indent: int | None = None) -> None:
    """Print JSON in ASCII, so that no character acts on a terminal."""
    sys.stdout.write(json.dumps(value, indent=indent) + "\n")
    sys.stdout.flush()


def age(seconds: float) -> str:
    """Return a duration in at most two units: ``7s``, ``3m 20s``, ``2d 4h``."""
    total = int(seconds)
    parts = [(total // 86400, "d"), (total // 3600 % 24, "h"), (total // 60 % 60, "m")]
    parts.append((total % 60, "s"))
    while len(parts) > 1 and not parts[0][0]:
        parts.pop(0)
    return " ".join(f"{count}{unit}" for count, unit in parts[:2])


def counts(of: Mapping[str, int]) -> str:
    """Return ``max_from_ip 50, rate 6``, the most frequent first."""
    return ", ".join(f"{name} {n}" for name, n in sorted(of.items(), key=lambda each: -each[1]))


def _with(number: object, details: str) -> str:
    return f"{number} ({details})" if details else str(number)


def status_lines(status: Status) -> Iterator[str]:
    """Return the lines of the status."""
    yield (
        f"smtpd-fork {status.version} on {status.hostname}, pid {status.pid}: "
        f"{status.state}, for {age(status.seconds)}"
    )
    yield f"sessions   {_with(f'{status.sessions} of {status.limit}', counts(status.phases))}"
    top = ", ".join(f"{each.client} {each.sessions}" for each in status.top)
    yield f"clients    {_with(status.clients, top)}"
    yield f"admitted   {status.admitted}"
    yield f"refused    {_with(status.refused, counts(status.rules))}"
    yield f"messages   {_with(sum(status.messages.values()), counts(status.messages))}"
    yield f"rejected   {_with(sum(status.rejections.values()), counts(status.rejections))}"
    yield from (f"filter     {_sink_facts(each)}" for each in status.filters)
    yield from (f"sink       {_sink_facts(each)}" for each in status.sinks)
    for each in status.processes:
        yield (
            f"process    pid {each.pid}: {each.state}, for {age(each.seconds)}, "
            f"{each.sessions} of {each.limit} sessions"
        )
    yield f"listening  {', '.join(status.listeners)}"
    if status.fleet is not None:
        yield fleet_line(status.fleet)
    if status.denied:
        yield f"denied     {status.denied} networks at run time"
    if status.limits_changed:
        yield f"limits     changed at run time: {', '.join(status.limits_changed)}"


def _sink_facts(sink: SinkState) -> str:
    parts = [counts(sink.replies)] if sink.replies else []
    if sink.average:
        parts.append(f"{sink.average * 1000:.1f} ms on average")
    if sink.connections is not None:
        parts.append(f"{sink.connections} connections, {sink.busy} busy, {sink.waiting} waiting")
    if sink.down_since is not None:
        parts.append(f"down for {age(sink.down)}: {sink.reason}")
    return f"{sink.name}{': ' if parts else ''}{'; '.join(parts)}"


def fleet_line(fleet: FleetStatus) -> str:
    """Return the line about the fleet, as this node sees it."""
    if fleet.reason:
        return f"fleet      {fleet.state} for {age(fleet.down)}: {fleet.reason}"
    sessions = counted(fleet.sessions, "session")
    if fleet.limit:
        sessions = (
            f"{fleet.sessions} of {fleet.limit} sessions, {counted(fleet.slots, 'slot')} here"
        )
    nodes = f"{fleet.state}, {counted(fleet.nodes, 'node')}"
    return f"fleet      {nodes}, {sessions}, round trip {fleet.round_trip * 1000:.1f} ms"


def node_line(node: Node) -> str:
    """Return the line of a node in the table of nodes."""
    return _NODE.format(
        *(node.name, node.host, node.pid, node.version),
        age(max(0.0, time.time() - node.since)),
        *(node.sessions, node.slots, f"{node.lease:.1f}s"),
        ", ".join(
            word for word, yes in (("this node", node.own), ("clients wait", node.waits)) if yes
        ),
    ).rstrip()


def fleet_limit_line(held: Held) -> str:
    """Return the line with the fleet's count for a limit of a client."""
    where = f" ({counts(held.nodes)})" if held.nodes else ""
    return f"{held.rule:<13} {held.key}: {held.sessions} of {held.limit}{where}"


def summary(status: Status, before: Status | None) -> str:
    """Return the status in one line, with what has changed since *before*."""
    admitted = status.admitted - (before or status).admitted
    refused = status.refused - (before or status).refused
    clients = counted(status.clients, "client")
    return (
        f"{status.state} {status.sessions}/{status.limit} sessions, {clients}, "
        f"admitted {status.admitted} (+{admitted}), refused {status.refused} (+{refused})"
    )


def session_line(session: Session) -> str:
    """Return the line of a session in the table of sessions."""
    return _SESSION.format(
        session.id,
        age(session.seconds),
        session.phase,
        "yes" if session.tls else "no",
        session.messages,
        session.peer,
        session.helo,
    ).rstrip()


def denial_line(denial: Denial) -> str:
    """Return the line of a denied network in the table of denials."""
    left = "-" if denial.seconds is None else age(denial.seconds)
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(denial.since))
    by = f"{denial.by} on {denial.node}" if denial.node else denial.by
    return _DENIAL.format(denial.network, left, since, by, denial.text).rstrip()


def not_shared_lines(reason: str | None) -> Iterator[str]:
    """Return a warning if a change has not yet reached the fleet."""
    if reason is not None:
        yield f"only on this node until the fleet is reachable: {reason}"


def limit_lines(limits: Limits) -> Iterator[str]:
    """Return the lines of the limits, each in the form of options."""
    width = max((len(name) for name in limits.limits), default=0)
    for name, value in sorted(limits.limits.items()):
        mark = "  (changed)" if name in limits.changed else ""
        yield f"{name:<{width}}  {_setting(value)}{mark}"
    if limits.until:
        yield f"changes last until {limits.until}"
    if limits.warning:
        yield f"warning: {limits.warning}"


def _setting(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " ".join(map(str, value)) or "-"
    return f"{value:g}" if isinstance(value, float) else str(value)


def explanation_lines(explanation: Explanation) -> Iterator[str]:
    """Return the lines about a refusal, or about a session's rejections."""
    if explanation.rejections:
        for each in explanation.rejections:
            yield from _rejection_lines(each, explanation.id)
        return
    yield f"refusal  {explanation.id}"
    yield f"rule     {explanation.rule}"
    if explanation.client:
        yield f"client   {explanation.client}"
    if "/" in explanation.key:
        yield f"network  {explanation.key}"
    if explanation.limit:
        yield f"count    {explanation.count}, more than {explanation.limit}"
    if explanation.nodes:
        yield f"nodes    {counts(explanation.nodes)}"
    if explanation.origin:
        yield f"origin   {explanation.origin}"
    yield f"reply    {explanation.reply}"
    yield f"advice   {explanation.cure}"


def _rejection_lines(rejection: Rejection, session: str) -> Iterator[str]:
    yield f"rejected {rejection.command} from {rejection.client} [{session}]"
    yield f"reply    {rejection.reply}"
    yield f"reason   {rejection.reason}"
    yield f"from     <{rejection.sender}>"
    if rejection.recipient:
        yield f"to       <{rejection.recipient}>"
    yield f"helo     {rejection.helo}"
    if rejection.user:
        yield f"user     {rejection.user}"
    if rejection.score:
        yield f"score    {rejection.score:g}"
    if rejection.tags:
        yield f"tags     {rejection.tags}"
    if rejection.orig_client:
        yield f"origin   {rejection.orig_client}"
