"""Page: the facts as a page for people, and as JSON for programs.

Plain HTML that reloads itself: no script, no picture, nothing from elsewhere, and a policy that
allows nothing else. Whatever a client can choose (addresses, the name in HELO) is escaped.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import msgspec

from smtpd_fork.net import describe
from smtpd_fork.observe.chart import COLOURS, bars, leading
from smtpd_fork.observe.history import refusals
from smtpd_fork.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from smtpd_fork.gate import Entry
    from smtpd_fork.observe.facts import Facts

__all__ = ["POLICY", "as_json", "render"]

REFRESH_SECONDS = 5

LONGEST_NAME = 80
"""Characters of a HELO name that are shown."""

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --line: #d0d7de; --soft: #57606a;
  --c0: #1f6feb; --c1: #c2410c; --c2: #15803d; --c3: #7c3aed; --c4: #a16207; --c5: #64748b;
  --good: #15803d; --bad: #b91c1c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --paper: #0d1117; --line: #30363d;
  --soft: #9da7b1; --c0: #58a6ff; --c1: #fb923c; --c2: #4ade80; --c3: #c4a1ff; --c4: #facc15;
  --c5: #94a3b8; --good: #4ade80; --bad: #f87171; } }
body { margin: 1.5rem auto; padding: 0 1rem; max-width: 64rem; background: var(--paper);
  color: var(--ink); font: 15px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.35rem; margin: 0 0 .2rem; } h2 { font-size: 1.05rem; margin: 1.6rem 0 .4rem; }
p { margin: .2rem 0; color: var(--soft); } .serving { color: var(--good); }
.paused, .stopping, .starting { color: var(--bad); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .2rem .6rem .2rem 0; border-bottom: 1px solid var(--line);
  overflow-wrap: anywhere; }
th { color: var(--soft); font-weight: 600; } .n { text-align: right; }
.scroll { overflow-x: auto; } .scroll th, .scroll td { white-space: nowrap; }
.scroll td:nth-child(3) { white-space: normal; min-width: 12rem; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(19rem, 1fr)); gap: 0 2rem; }
svg { width: 100%; height: auto; } svg text { fill: var(--soft); font-size: 11px; }
.axis { stroke: var(--line); } .dot { display: inline-block; width: .7em; height: .7em; }
""" + "".join(
    f".c{n} {{ fill: var(--c{n}); }} .dot.c{n} {{ background: var(--c{n}); }}\n"
    for n in range(COLOURS)
)  # fmt: skip

_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()

POLICY = (
    f"default-src 'none'; style-src 'sha256-{_HASH}'; img-src data:; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'none'"
)
"""The Content-Security-Policy: this one style, the empty picture that stands for none, no more."""


@dataclass(frozen=True, slots=True)
class _Cell:
    """A cell of a table that is more than text.

    :ivar markup: HTML, with whatever is in it escaped
    """

    markup: str


def render(facts: Facts, hostname: str) -> bytes:
    """Return the page, in UTF-8."""
    how = (
        f'<p><strong class="{facts.state}">{facts.state}</strong> for {_time(facts.uptime)}, '
        f"smtpd-fork {escape(__version__)}, the loop is {facts.lag * 1000:.0f} ms late</p>"
    )
    who = (
        f"<p>{facts.sessions} of {facts.limit} sessions, from {_count(facts.sources, 'source')}; "
        f"{facts.stats['admitted']} let in, {facts.stats['refused']} refused so far</p>"
    )
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="refresh" content="{REFRESH_SECONDS}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<title>{escape(hostname)}: smtpd-fork</title><link rel="icon" href="data:,">',
        f"<style>{STYLE}</style></head><body>",
        f"<h1>{escape(hostname)}</h1>",
        how,
        who,
        "<h2>Refusals in the last hour</h2>",
        bars(facts.minutes),
        '<div class="two"><section><h2>By rule</h2>',
        _rules(facts),
        "</section><section><h2>Sessions by what they do</h2>",
        _table(["", "#sessions"], [(p, n) for p, n in facts.phases.items() if n], "nobody is in"),
        "</section><section><h2>Top sources</h2>",
        _table(["source", "#sessions"], facts.top, "nobody is in"),
        "</section><section><h2>Listeners</h2>",
        _listeners(facts),
        "</section></div>",
        *_sessions(facts),
        "</body></html>\n",
    ]
    return "\n".join(parts).encode("utf-8", "replace")


def _rules(facts: Facts) -> str:
    """Return the rules that refused, in the hour and ever; the legend of the bars."""
    ever = refusals(facts.stats)
    recent = leading(facts.minutes)
    known = [rule for rule, _ in recent]
    rows = [
        (_Cell(f'<span class="dot c{min(rank, COLOURS - 1)}"></span> {escape(rule)}'), count,
         ever.get(rule, 0))
        for rank, (rule, count) in enumerate(recent)
    ]  # fmt: skip
    rows += [(_Cell(escape(rule)), 0, ever[rule]) for rule in sorted(ever) if rule not in known]
    return _table(["rule", "#in the last hour", "#so far"], rows, "nobody was refused")


def _listeners(facts: Facts) -> str:
    rows = [
        (name, "?" if queue is None else queue.waiting, "?" if queue is None else queue.limit)
        for name, queue in facts.queues
    ]
    return _table(["address", "#waiting", "#at most"], rows, "none are left")


def _sessions(facts: Facts) -> list[str]:
    rest = facts.sessions - len(facts.oldest)
    rows = [
        (
            *(each.id, _who(each), _short(each.helo), each.listener),
            *(each.phase, "yes" if each.tls else "", each.messages, _time(each.seconds)),
        )
        for each in facts.oldest
    ]
    heads = ["id", "client", "calls itself", "came in at", "does", "TLS", "#messages", "#for"]
    parts = [
        "<h2>Sessions, the oldest first</h2>",
        f'<div class="scroll">{_table(heads, rows, "nobody is in")}</div>',
    ]
    if rest > 0:
        parts.append(f"<p>and {_count(rest, 'more session')}</p>")
    return parts


def _who(entry: Entry) -> str:
    client = describe(entry.peer)
    return client if entry.sender is None else f"{client} behind {describe(entry.sender)}"


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[:LONGEST_NAME] + "…"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]], empty: str) -> str:
    """Return a table; a head that begins with ``#`` is of figures. Every cell is escaped."""
    classes = [' class="n"' if head.startswith("#") else "" for head in heads]
    body = [
        "<tr>" + "".join(
            f"<td{css}>{cell.markup if isinstance(cell, _Cell) else escape(str(cell))}</td>"
            for css, cell in zip(classes, row, strict=True)
        ) + "</tr>"
        for row in rows
    ]  # fmt: skip
    if not body:
        return f"<p>{escape(empty)}</p>"
    head = "".join(
        f"<th{css}>{escape(text.lstrip('#'))}</th>"
        for css, text in zip(classes, heads, strict=True)
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _time(seconds: float) -> str:
    """Return a time as people say it, in two units at most."""
    whole = int(seconds)
    days, rest = divmod(whole, 86400)
    hours, rest = divmod(rest, 3600)
    minutes, rest = divmod(rest, 60)
    units = [(days, "d"), (hours, "h"), (minutes, "min"), (rest, "s")]
    told = [f"{number} {unit}" for number, unit in units if number]
    return " ".join(told[:2]) or "0 s"


def as_json(facts: Facts, hostname: str) -> bytes:
    """Return the same facts as JSON."""
    return msgspec.json.encode(
        {
            "hostname": hostname,
            "version": __version__,
            "state": facts.state,
            "uptime": round(facts.uptime, 1),
            "lag": round(facts.lag, 4),
            "sessions": facts.sessions,
            "limit": facts.limit,
            "states": facts.phases,
            "admitted": facts.stats["admitted"],
            "refused": refusals(facts.stats),
            "refused_by_minute": facts.minutes,
            "sources": facts.sources,
            "top_sources": [{"source": source, "sessions": n} for source, n in facts.top],
            "listeners": [
                {
                    "address": name,
                    "waiting": None if queue is None else queue.waiting,
                    "at_most": None if queue is None else queue.limit,
                }
                for name, queue in facts.queues
            ],
            "oldest_sessions": [
                {
                    "id": _text(each.id),
                    "client": _text(describe(each.peer)),
                    "proxy": None if each.sender is None else describe(each.sender),
                    "helo": _text(each.helo),
                    "listener": each.listener,
                    "state": each.phase,
                    "tls": each.tls,
                    "messages": each.messages,
                    "seconds": round(each.seconds, 1),
                }
                for each in facts.oldest
            ],
        }
    )


def _text(text: str) -> str:
    """Return a client's word as UTF-8 can hold it."""
    return text.encode("utf-8", "replace").decode("utf-8")
