"""``python -m bench``: measure, print the tables, and write the page with ``--write``."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path
from resource import RLIMIT_NOFILE, getrlimit, setrlimit

from bench.certificates import Certificates
from bench.contenders import CONTENDERS
from bench.machine import describe
from bench.page import PLOT, compose
from bench.plot import draw
from bench.process import ROOT
from bench.rounds import measure
from bench.workloads import KEYS, workloads

ROUNDS = 5

_INTERRUPTED = 130


def _keys(text: str) -> list[str]:
    keys = [key.strip().upper() for key in text.split(",")]
    for key in keys:
        if key not in KEYS:
            raise argparse.ArgumentTypeError(f"{key!r} is none of {', '.join(KEYS)}")
    return keys


def _rounds(text: str) -> int:
    rounds = int(text)
    if rounds < 1:
        raise argparse.ArgumentTypeError("at least one")
    return rounds


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Measure this daemon beside other servers."
    )
    parser.add_argument(
        "--rounds", type=_rounds, metavar="N", help=f"default {ROUNDS}; with --quick 1"
    )
    parser.add_argument("--quick", action="store_true", help="about a minute; rough values")
    parser.add_argument(
        "--only", type=_keys, metavar="W1,W2", default=list(KEYS), help="only these workloads"
    )
    parser.add_argument(
        "--server",
        nargs="+",
        choices=[contender.name for contender in CONTENDERS],
        metavar="NAME",
        help=f"only these servers, of: {', '.join(contender.name for contender in CONTENDERS)}",
    )
    parser.add_argument(
        "--write", action="store_true", help="write docs/performance.md and its plot"
    )
    return parser


def _print_line(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def main() -> None:
    """Measure the workloads and servers that the arguments select."""
    arguments = _parser().parse_args()
    # A signal raises an exception, so that every process that was started is ended on the way out.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    hard = getrlimit(RLIMIT_NOFILE)[1]
    setrlimit(RLIMIT_NOFILE, (hard, hard))  # Servers and clients inherit this limit.

    quick = arguments.quick
    rounds = arguments.rounds or (1 if quick else ROUNDS)
    chosen = [each for each in workloads(quick=quick) if each.key in arguments.only]
    contenders = [
        each for each in CONTENDERS if not arguments.server or each.name in arguments.server
    ]
    facts = list(describe([each for each in contenders if not each.missing()]))
    with tempfile.TemporaryDirectory(prefix="smtpd-fork-bench-") as folder:
        certificates = Certificates(Path(folder))
        results = measure(contenders, chosen, rounds, certificates, _print_line)

    no_plot = "it is drawn with --write"
    if arguments.write:
        known = dict(facts)
        note = f"{known['machine']}; {known['date']}; median of {rounds}, whiskers least..most"
        no_plot = draw(ROOT / "docs" / PLOT, results, chosen, contenders, note)
    page = compose(results, chosen, contenders, facts, quick=quick, plot=no_plot)
    if arguments.write:
        (ROOT / "docs" / "performance.md").write_text(page, encoding="utf-8")
    sys.stdout.write(page)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        _print_line("interrupted: nothing was written")
        sys.exit(_INTERRUPTED)
