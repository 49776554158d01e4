"""Status page: a snapshot as HTML for people, and as JSON for programs.

The page ``status_page.html`` is a :class:`string.Template`; a template engine would be another
dependency for one page. It reloads itself, has no script, and loads no other files; its
Content-Security-Policy allows nothing else. All text that clients can choose (addresses, the name
in HELO) is escaped.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING

import msgspec

from smtpd_fork.observe.refusal_chart import COLOURS, bars, leading
from smtpd_fork.observe.refusal_history import refusals
from smtpd_fork.peer_address import describe
from smtpd_fork.units import counted
from smtpd_fork.version import __version__

if TYPE_CHECKING:
    from smtpd_fork.gate import Entry
    from smtpd_fork.observe.sink_state import SinkState
    from smtpd_fork.observe.snapshot import Snapshot

__all__ = ["POLICY", "STYLE", "as_json", "render"]

MAX_NAME_LENGTH = 80
"""Maximum characters of a HELO name that are shown."""

_PAGE = files("smtpd_fork.observe").joinpath("status_page.html").read_text("utf-8")

STYLE = _PAGE.partition("<style>")[2].partition("</style>")[0]

_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()

POLICY = (
    f"default-src 'none'; style-src 'sha256-{_HASH}'; img-src data:; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'none'"
)
"""The Content-Security-Policy: it allows only the style of the page, and an empty icon."""


class _Markup(str):
    """HTML that a table must not escape; all other strings are escaped."""

    __slots__ = ()


def render(snapshot: Snapshot, hostname: str) -> bytes:
    """Return the page, in UTF-8."""
    text = {
        "hostname": hostname,
        "state": snapshot.state,
        "uptime": _time(snapshot.uptime),
        "version": __version__,
        "lag": f"{snapshot.lag * 1000:.0f}",
        "sessions": snapshot.sessions,
        "limit": snapshot.limit,
        "clients": counted(snapshot.clients, "client"),
        "admitted": snapshot.stats["admitted"],
        "refused": snapshot.stats["refused"],
        "accepted": snapshot.messages["accepted"],
        "rejected": snapshot.messages["rejected"],
        "deferred": snapshot.messages["deferred"],
        "rejections": sum(snapshot.rejections.values()),
    }
    phases = [(phase, count) for phase, count in snapshot.phases.items() if count]
    more = snapshot.sessions - len(snapshot.oldest)
    markup = {
        "chart": bars(snapshot.minutes),
        "rules": _rules(snapshot),
        "phases": _table(["", "#sessions"], phases, "no sessions"),
        "top": _table(["client", "#sessions"], snapshot.top, "no sessions"),
        "filters": _sinks("filter", snapshot.filters),
        "sinks": _sinks("sink", snapshot.sinks),
        "fleet": _fleet(snapshot),
        "listeners": _listeners(snapshot),
        "oldest": _oldest(snapshot),
        "rest": f"<p>and {counted(more, 'more session')}</p>" if more > 0 else "",
    }
    escaped = {name: escape(str(value)) for name, value in text.items()}
    return Template(_PAGE).substitute(escaped, **markup).encode("utf-8", "replace")


def _rules(snapshot: Snapshot) -> str:
    """Return the refusals by rule in the last hour and in total, with the colours of the chart."""
    ever = refusals(snapshot.stats)
    recent = dict(leading(snapshot.minutes))
    rows: list[tuple[str, int, int]] = []
    for rank, (rule, count) in enumerate(recent.items()):
        dot = f'<span class="dot c{min(rank, COLOURS - 1)}"></span>'
        rows.append((_Markup(f"{dot} {escape(rule)}"), count, ever.get(rule, 0)))
    rows += [(rule, 0, ever[rule]) for rule in sorted(ever) if rule not in recent]
    return _table(["rule", "#in the last hour", "#since the start"], rows, "no refusals")


def _listeners(snapshot: Snapshot) -> str:
    rows = [
        (name, *(("?", "?") if queue is None else (queue.waiting, queue.limit)))
        for name, queue in snapshot.queues
    ]
    return _table(["address", "#waiting", "#at most"], rows, "no listeners")


def _sinks(kind: str, states: Sequence[SinkState]) -> str:
    heads = [kind, "#2xx", "#4xx", "#5xx", "#average", "#connections", "#waiting", "state"]
    rows = [
        (
            *(each.name, *(each.replies.get(name, 0) for name in ("2xx", "4xx", "5xx"))),
            *(
                f"{each.average * 1000:.1f} ms",
                "" if each.connections is None else each.connections,
            ),
            each.waiting or "",
            "" if each.down_since is None else f"down for {_time(each.down)}: {each.reason}",
        )
        for each in states
    ]
    return _table(heads, rows, f"no {kind}s")


def _fleet(snapshot: Snapshot) -> str:
    fleet = snapshot.fleet
    if fleet is None:
        return ""
    state = fleet.state
    if fleet.down_since is not None:
        state += f" for {_time(fleet.down)}: {fleet.reason}"
    row = (fleet.nodes, fleet.sessions, fleet.limit or "-", fleet.slots, fleet.free)
    heads = ["#nodes", "#sessions", "#at most", "#slots", "#free", "#round trip", "state"]
    table = _table(heads, [(*row, f"{fleet.round_trip * 1000:.1f} ms", state)], "")
    return f"<h2>Fleet</h2>{table}"


def _oldest(snapshot: Snapshot) -> str:
    heads = ["id", "client", "HELO", "listener", "state", "TLS", "#messages", "#age"]
    rows = [
        (
            *(each.id, _client(each), _short(each.helo), each.listener),
            *(each.phase, "yes" if each.tls else "", each.messages, _time(each.seconds)),
        )
        for each in snapshot.oldest
    ]
    return _table(heads, rows, "no sessions")


def _client(entry: Entry) -> str:
    client = describe(entry.peer)
    return client if entry.sender is None else f"{client} behind {describe(entry.sender)}"


def _short(name: str) -> str:
    return name if len(name) <= MAX_NAME_LENGTH else name[:MAX_NAME_LENGTH] + "…"


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]], empty: str) -> str:
    """Return a table; the columns whose head begins with ``#`` are numbers."""
    numbers = [head.startswith("#") for head in heads]
    body = [_row("td", row, numbers) for row in rows]
    if not body:
        return f"<p>{escape(empty)}</p>"
    head = _row("th", [head.lstrip("#") for head in heads], numbers)
    return f"<table><thead>{head}</thead><tbody>{''.join(body)}</tbody></table>"


def _row(tag: str, cells: Sequence[object], numbers: Sequence[bool]) -> str:
    markup = ""
    for cell, number in zip(cells, numbers, strict=True):
        css = ' class="n"' if number else ""
        content = cell if isinstance(cell, _Markup) else escape(str(cell))
        markup += f"<{tag}{css}>{content}</{tag}>"
    return f"<tr>{markup}</tr>"


def _time(seconds: float) -> str:
    """Return a duration in its two largest units, as ``1 h 5 min``."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    units = [(days, "d"), (hours, "h"), (minutes, "min"), (rest, "s")]
    return " ".join([f"{number} {unit}" for number, unit in units if number][:2]) or "0 s"


def as_json(snapshot: Snapshot, hostname: str) -> bytes:
    """Return the same snapshot as JSON."""
    return msgspec.json.encode(
        {
            "hostname": hostname,
            "version": __version__,
            "state": snapshot.state,
            "uptime": round(snapshot.uptime, 1),
            "lag": round(snapshot.lag, 4),
            "sessions": snapshot.sessions,
            "limit": snapshot.limit,
            "states": snapshot.phases,
            "admitted": snapshot.stats["admitted"],
            "refused": refusals(snapshot.stats),
            "messages": snapshot.messages,
            "rejections": snapshot.rejections,
            "refused_by_minute": snapshot.minutes,
            "clients": snapshot.clients,
            "top_clients": [{"client": client, "sessions": n} for client, n in snapshot.top],
            "listeners": [
                {
                    "address": name,
                    "waiting": None if queue is None else queue.waiting,
                    "at_most": None if queue is None else queue.limit,
                }
                for name, queue in snapshot.queues
            ],
            "sinks": snapshot.sinks,
            "filters": snapshot.filters,
            "fleet": snapshot.fleet,
            "oldest_sessions": [_session(each) for each in snapshot.oldest],
        }
    )


def _session(entry: Entry) -> dict[str, object]:
    return {
        "id": _text(entry.id),
        "client": _text(describe(entry.peer)),
        "proxy": None if entry.sender is None else describe(entry.sender),
        "helo": _text(entry.helo),
        "listener": entry.listener,
        "state": entry.phase,
        "tls": entry.tls,
        "messages": entry.messages,
        "seconds": round(entry.seconds, 1),
    }


def _text(text: str) -> str:
    """Return a client's text without surrogates, which UTF-8 cannot encode."""
    return text.encode("utf-8", "replace").decode("utf-8")
