"""The page: all of it comes from one run, so that no figure and no sentence is an old one."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from bench.tables import COMPARED_WITH, floor_table, target_table, workload_table
from bench.targets import ENOUGH_ROUNDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bench.contenders import Contender
    from bench.results import Results
    from bench.workloads import Workload

__all__ = ["compose"]

PLOT = "performance.png"
WIDTH = 100

_OPENING = """\
# Performance

This page is written by `make bench`; do not edit it. All of its figures are from one run, on one
machine, and say nothing about another: what carries over is how the servers compare, measured
within seconds of each other.

<!-- not run: it takes minutes, and writes docs/performance.md -->
```console
$ make bench                                # print the tables
$ make bench ARGS="--write"                 # and write this page
$ make bench ARGS="--quick"                 # about a minute: only to see that it works
$ make bench ARGS="--only W1,W2 --rounds 9" # some workloads, more rounds
```

It needs Linux (it reads /proc) and Postfix's `smtp-source`; what else is missing is left out, and
the tables say why. Nothing leaves the loopback interface, and every process it starts it ends."""

_FLOOR = """\
### How near that is to the limit

**bare** is no server: a protocol of a dozen lines on the same loop, which answers and looks at
next to nothing. What it costs is what the kernel, the loop and the calls into Python cost, and no
server in Python costs less. What a target leaves above it is all that there is for the gate, the
session, the grammar, the message and its checks."""

_METHOD = """\
## How to read it

- **CPU** is user and system time of the server and its children, from /proc/PID/stat, after less
  before, divided by the number of messages or connections. Other work on the machine disturbs it
  much less than it disturbs wall time, and the client's own work is not in it. The kernel counts it
  in steps of 10 ms.
- **Messages a second** is wall time. The client takes a core as well, and on a machine with few
  cores it, or other work, may be what limits the figure.
- A cell is the **median** of all rounds, and behind it **(least..most)**. A ratio is taken within
  each round, and its median is given: it need not be the ratio of the two medians. Less is better,
  but for what is a second.
- Each figure comes from a server started for it, on a port of its own, and warmed up first. The
  servers take turns within a workload, and each round begins with another one."""


def compose(
    results: Results,
    workloads: Sequence[Workload],
    contenders: Sequence[Contender],
    facts: Sequence[tuple[str, str]],
    *,
    quick: bool,
    plot: str,
) -> str:
    """Return the page.

    :param facts: what the run was made on
    :param plot: why there is none, or an empty string
    """
    parts = [
        _OPENING,
        "\n".join(_run(results, facts, quick=quick)),
        "\n".join(
            ["## Targets", "", *target_table(results, [workload.key for workload in workloads])]
        ),
        "\n".join(
            [
                _FLOOR,
                "",
                *floor_table(results, [workload.key for workload in workloads]),
            ]
        ),
        f"No plot: {plot}."
        if plot
        else f"![The first figure of each workload, server by server]({PLOT})",
        _METHOD,
        *("\n".join(_workload(results, each, contenders)) for each in workloads),
        "\n".join(_servers(contenders)),
    ]
    return "\n\n".join(parts) + "\n"


def _run(results: Results, facts: Sequence[tuple[str, str]], *, quick: bool) -> Iterator[str]:
    yield "## This run"
    yield ""
    yield "| what | which |"
    yield "| --- | --- |"
    for name, fact in facts:
        yield f"| {name} | {fact} |"
    yield f"| rounds | {results.rounds} |"
    if quick:
        yield ""
        yield "**A quick run**: so few messages that its figures are coarse."
    if results.rounds < ENOUGH_ROUNDS:
        yield ""
        yield f"**{results.rounds} round(s)**: too few to conclude anything from."


def _workload(
    results: Results, workload: Workload, contenders: Sequence[Contender]
) -> Iterator[str]:
    yield f"## {workload.key}: {workload.title}"
    yield ""
    yield _fill(workload.how)
    yield ""
    yield from workload_table(results, workload, contenders)


def _servers(contenders: Sequence[Contender]) -> Iterator[str]:
    yield "## The servers"
    yield ""
    yield _fill(
        "All take every message and throw it away, but for W12. Ratios are to "
        f"{', '.join(COMPARED_WITH[:-1])} and {COMPARED_WITH[-1]}. Servers that need little or "
        "much for a message get more or fewer of them, so that each is measured for a similar time."
    )
    yield ""
    for contender in contenders:
        text = f"- **{contender.name}**: {contender.setup}. {contender.portion:g} x the messages"
        few = contender.portion_of_connections
        if few is not None:
            text += f", {few:g} x where each small one has a connection of its own"
        yield _fill(text + ".", indent="  ")


def _fill(text: str, indent: str = "") -> str:
    return textwrap.fill(
        text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
