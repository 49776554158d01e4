"""Text: what an administrator reads of the daemon's replies, and nothing that a terminal obeys."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from smtpd_fork.sanitizer import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from smtpd_fork.cli.control.replies import Explanation, Limits, Session, Status

__all__ = [
    "SESSION_HEADER",
    "age",
    "explanation_lines",
    "limit_lines",
    "say",
    "say_json",
    "session_line",
    "status_lines",
    "summary",
]

LONGEST_LINE = 4000

_SESSION = "{:<14} {:>9} {:<12} {:<3} {:>4} {:<28} {}"

SESSION_HEADER = _SESSION.format("ID", "AGE", "PHASE", "TLS", "MSGS", "PEER", "HELO")


def say(line: str) -> None:
    """Print a line; whatever is in it cannot be more than that."""
    sys.stdout.write(printable(line, LONGEST_LINE) + "\n")
    sys.stdout.flush()


def say_json(value: object, *, indent: int | None = None) -> None:
    """Print JSON in ASCII alone, so that a terminal finds nothing in it to obey."""
    sys.stdout.write(json.dumps(value, indent=indent) + "\n")
    sys.stdout.flush()


def age(seconds: float) -> str:
    """Return how long something has been, in two units at most: ``7s``, ``3m 20s``, ``2d 4h``."""
    total = int(seconds)
    parts = [(total // 86400, "d"), (total // 3600 % 24, "h"), (total // 60 % 60, "m")]
    parts.append((total % 60, "s"))
    while len(parts) > 1 and not parts[0][0]:
        parts.pop(0)
    return " ".join(f"{count}{unit}" for count, unit in parts[:2])


def counts(of: Mapping[str, int]) -> str:
    """Return ``max_from_ip 50, rate 6``, the most frequent first."""
    return ", ".join(f"{name} {n}" for name, n in sorted(of.items(), key=lambda each: -each[1]))


def _with(figure: object, details: str) -> str:
    return f"{figure} ({details})" if details else str(figure)


def status_lines(status: Status) -> Iterator[str]:
    """Return the status, a fact a line."""
    yield (
        f"smtpd-fork {status.version} on {status.hostname}, pid {status.pid}: "
        f"{status.state}, for {age(status.seconds)}"
    )
    yield f"sessions   {_with(f'{status.sessions} of {status.limit}', counts(status.phases))}"
    top = ", ".join(f"{each.source} {each.sessions}" for each in status.top)
    yield f"sources    {_with(status.sources, top)}"
    yield f"admitted   {status.admitted}"
    yield f"refused    {_with(status.refused, counts(status.rules))}"
    yield f"listening  {', '.join(status.listeners)}"
    if status.limits_changed:
        yield f"limits     changed at run time: {', '.join(status.limits_changed)}"


def summary(status: Status, before: Status | None) -> str:
    """Return the status in one line, with what has changed since *before*."""
    admitted = status.admitted - (before or status).admitted
    refused = status.refused - (before or status).refused
    return (
        f"{status.state} {status.sessions}/{status.limit} sessions, {status.sources} sources, "
        f"admitted {status.admitted} (+{admitted}), refused {status.refused} (+{refused})"
    )


def session_line(session: Session) -> str:
    """Return a session as a line of the table."""
    return _SESSION.format(
        session.id,
        age(session.seconds),
        session.phase,
        "yes" if session.tls else "no",
        session.messages,
        session.peer,
        session.helo,
    ).rstrip()


def limit_lines(limits: Limits) -> Iterator[str]:
    """Return the limits, one a line, as options have them."""
    width = max((len(name) for name in limits.limits), default=0)
    for name, value in sorted(limits.limits.items()):
        mark = "  (changed)" if name in limits.changed else ""
        yield f"{name:<{width}}  {_setting(value)}{mark}"
    if limits.until:
        yield f"what is changed holds until {limits.until}"


def _setting(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " ".join(map(str, value)) or "-"
    return f"{value:g}" if isinstance(value, float) else str(value)


def explanation_lines(explanation: Explanation) -> Iterator[str]:
    """Return what is known of a refusal, a fact a line."""
    yield f"refusal  {explanation.id}"
    yield f"rule     {explanation.rule}"
    if explanation.key:
        yield f"of       {explanation.key}"
    if explanation.limit:
        yield f"count    {explanation.count}, more than {explanation.limit}"
    yield f"told     {explanation.reply}"
    yield f"cure     {explanation.cure}"
