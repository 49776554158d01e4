"""The page: all numbers and sentences come from one run, so none is out of date."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from bench.tables import (
    floor_table,
    summary_table,
    target_table,
    workload_table,
)
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

Compare the CPU time, memory and throughput of smtpd-fork with other SMTP servers, and measure them
on your own machine. `make bench` writes this page; do not edit it. All numbers are from one run on
one machine. Other machines give other numbers; compare the servers with each other, as they were
measured within seconds of each other.

<!-- not run: it takes minutes, and writes docs/performance.md -->
```console
$ make bench                                # print the tables
$ make bench ARGS="--write"                 # and write this page
$ make bench ARGS="--quick"                 # about a minute: only to see that it works
$ make bench ARGS="--only W1,W2 --rounds 9" # some workloads, more rounds
```

`make bench` needs Linux (it reads /proc) and Postfix's `smtp-source`. Servers that are not
installed are omitted, and the tables give the reason. It uses only the loopback interface, and ends
every process that it starts."""

_SUMMARY = """\
## Summary

The costs of smtpd-fork, divided by those of another server for the same work: below 1, smtpd-fork
costs less. smtp-sink is Postfix's test server in C: it parses little and keeps nothing."""

_SUMMARISED = ("W1", "W2", "W3", "W4")
_SUMMARISED_SERVERS = ("smtp-sink", "aiosmtpd", "nodemailer", "haraka")

_FLOOR = """\
### The lower limit for Python

**bare** is a protocol of a dozen lines on the same event loop, which answers 250 to everything. Its
CPU time is that of the kernel, the loop and the calls into Python, so no server in Python needs
less. The difference to a target is available for the gate, the session, the parser and the checks
of a message."""

_METHOD = """\
## How to read it

- **CPU** is the user and system time of the server and its children during a workload
  (/proc/PID/stat), divided by the number of messages or connections. It does not include the
  client, and other work on the machine disturbs it much less than wall time. The kernel counts it
  in steps of 10 ms.
- **Messages per second** is wall time. The client needs CPU time as well, and on a machine with few
  cores it, or other work, may limit the result.
- A cell has the **median** of all rounds and, in parentheses, **(least..most)**. A ratio is
  calculated for each round, and its median is shown: it can differ from the ratio of the two
  medians. Less is better, except for values per second.
- Each value is from a server that was started for it, on its own port, and warmed up. The servers
  are measured one after another; each round begins with a different server."""


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

    :param facts: facts about the machine and the versions
    :param plot: why there is no plot, or an empty string
    """
    parts = [
        _OPENING,
        _SUMMARY,
        "\n".join(
            summary_table(
                results, [w for w in workloads if w.key in _SUMMARISED], _SUMMARISED_SERVERS
            )
        ),
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
        f"No plot: {plot}." if plot else f"![The first value of each workload, by server]({PLOT})",
        _METHOD,
        *("\n".join(_workload(results, each, contenders)) for each in workloads),
        "\n".join(_servers(contenders)),
    ]
    return "\n\n".join(parts) + "\n"


def _run(results: Results, facts: Sequence[tuple[str, str]], *, quick: bool) -> Iterator[str]:
    yield "## This run"
    yield ""
    yield "| item | value |"
    yield "| --- | --- |"
    for name, fact in facts:
        yield f"| {name} | {fact} |"
    yield f"| rounds | {results.rounds} |"
    if quick:
        yield ""
        yield "**A quick run**: too few messages for exact numbers."
    if results.rounds < ENOUGH_ROUNDS:
        yield ""
        yield f"**{results.rounds} round(s)**: too few for conclusions."


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
        "All accept and discard every message, except in W10 and later. Faster servers get more "
        "messages than slower ones, so that each is measured for a similar time."
    )
    yield ""
    for contender in contenders:
        if not contender.setup:  # The text of the workload already says it.
            continue
        text = f"- **{contender.name}**: {contender.setup}. {contender.portion:g} x the messages"
        few = contender.portion_of_connections
        if few is not None:
            text += f", {few:g} x where each small one has a connection of its own"
        yield _fill(text + ".", indent="  ")


def _fill(text: str, indent: str = "") -> str:
    return textwrap.fill(
        text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
