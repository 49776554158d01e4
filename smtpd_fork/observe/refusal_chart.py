"""Chart: refusals over time as bars in SVG.

A plotting library would be larger than the daemon, and would produce scripts or images, which the
Content-Security-Policy of the page does not allow.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape

__all__ = ["COLOURS", "bars", "leading"]

COLOURS = 6
"""Number of CSS classes, ``c0`` to ``c5``: one for each rule; all further rules share the last."""

STEP, BAR = 12, 10
HEIGHT, TOP, BOTTOM = 120, 14, 16


def leading(minutes: Sequence[Mapping[str, int]]) -> list[tuple[str, int]]:
    """Return the rules that refused clients, with their counts, the highest first."""
    total: Counter[str] = Counter()
    for minute in minutes:
        total.update(minute)
    return sorted(total.items(), key=lambda item: (-item[1], item[0]))


def bars(minutes: Sequence[Mapping[str, int]]) -> str:
    """Return the chart: a bar for each minute, the last one at the right, with a part per rule."""
    order = [rule for rule, _ in leading(minutes)]
    highest = max((sum(minute.values()) for minute in minutes), default=0)
    width = STEP * len(minutes)
    total = sum(sum(minute.values()) for minute in minutes)
    label = f"{total} refusals in the last {len(minutes)} minutes"
    parts = [
        f'<svg viewBox="0 0 {width} {HEIGHT + TOP + BOTTOM}" role="img" aria-label="{label}">',
        f'<line class="axis" x1="0" y1="{TOP}" x2="{width}" y2="{TOP}"/>',
        f'<text x="0" y="{TOP - 4}">{highest} a minute</text>' if highest else "",
    ]
    for index, minute in enumerate(minutes):
        if minute:
            parts.append(_bar(index * STEP, minute, order, highest, len(minutes) - 1 - index))
    base = HEIGHT + TOP
    parts.append(f'<line class="axis" x1="0" y1="{base}" x2="{width}" y2="{base}"/>')
    for ago in range(0, len(minutes), 15):
        x = width - STEP * ago
        text = "now" if not ago else f"-{ago} min"
        parts.append(f'<text x="{x}" y="{base + 13}" text-anchor="end">{text}</text>')
    parts.append("</svg>")
    return "\n".join(filter(None, parts))


def _bar(x: int, minute: Mapping[str, int], order: Sequence[str], highest: int, ago: int) -> str:
    counts = ", ".join(f"{rule} {minute[rule]}" for rule in order if rule in minute)
    when = f"{ago} min ago" if ago else "this minute"
    parts = [f"<g><title>{escape(f'{when}: {counts}')}</title>"]
    y = float(HEIGHT + TOP)
    for rank, rule in enumerate(order):
        if rule in minute:
            height = minute[rule] / highest * HEIGHT
            y -= height
            colour = min(rank, COLOURS - 1)
            parts.append(
                f'<rect class="c{colour}" x="{x + 1}" y="{y:.1f}" '
                f'width="{BAR}" height="{height:.1f}"/>'
            )
    return "".join([*parts, "</g>"])
