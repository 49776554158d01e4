"""Watch: shows the status once a second, as a table on a terminal or as lines in a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from smtpd_fork.cli.control.output import age, fleet_line, say, say_json, summary
from smtpd_fork.cli.control.replies import Status
from smtpd_fork.errors import ConfigError
from smtpd_fork.sanitizer import printable

if TYPE_CHECKING:
    from rich.console import RenderableType

    from smtpd_fork.cli.control.connection import Connection

__all__ = ["watch"]

INTERVAL_SECONDS = 1.0


def watch(connection: Connection, *, as_json: bool) -> None:
    """Show the status until the daemon ends, or Ctrl-C.

    :raises UnavailableError: the daemon has ended
    :raises ConfigError: the output is a terminal, and rich is not installed
    """
    with suppress(KeyboardInterrupt):
        if as_json:
            while True:
                say_json(connection.ask_for_json("status"))
                time.sleep(INTERVAL_SECONDS)
        elif sys.stdout.isatty():
            _draw(connection)
        else:
            _write(connection)


def _write(connection: Connection) -> None:
    before = None
    while True:
        status = connection.ask("status", Status)
        say(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {summary(status, before)}")
        before = status
        time.sleep(INTERVAL_SECONDS)


def _draw(connection: Connection) -> None:
    try:
        from rich.live import Live  # noqa: PLC0415 - an extra
    except ModuleNotFoundError:
        reason = (
            "--watch on a terminal needs rich: pip install 'smtpd-fork[cli]', or pipe the output "
            "into cat"
        )
        raise ConfigError(reason) from None
    status = connection.ask("status", Status)
    with Live(_picture(status, None), auto_refresh=False) as live:
        while True:
            time.sleep(INTERVAL_SECONDS)
            before, status = status, connection.ask("status", Status)
            live.update(_picture(status, before), refresh=True)


def _picture(status: Status, before: Status | None) -> RenderableType:
    """Return the status as a table with a line above it.

    All text is :class:`rich.text.Text`, so that brackets are not interpreted as markup.
    """
    from rich.console import Group  # noqa: PLC0415 - as above
    from rich.table import Table  # noqa: PLC0415 - as above
    from rich.text import Text  # noqa: PLC0415 - as above

    table = Table()
    for heading in ("", "now", "a second"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, now, change in _rows(status, before or status):
        gained = "" if change is None else f"{change / INTERVAL_SECONDS:+g}"
        table.add_row(*(Text(printable(each)) for each in (name, now, gained)))
    where = f"smtpd-fork on {status.hostname}, pid {status.pid}"
    return Group(Text(printable(f"{where}: {status.state}, for {age(status.seconds)}")), table)


def _rows(status: Status, old: Status) -> Iterator[tuple[str, str, int | None]]:
    """Yield names, values, and their change since *old* where it is shown."""
    yield "sessions", f"{status.sessions} of {status.limit}", status.sessions - old.sessions
    for phase, count in sorted(status.phases.items()):
        yield f"  {phase}", str(count), None
    yield "admitted", str(status.admitted), status.admitted - old.admitted
    yield "refused", str(status.refused), status.refused - old.refused
    for rule, count in sorted(status.rules.items(), key=lambda each: -each[1]):
        yield f"  {rule}", str(count), count - old.rules.get(rule, 0)
    if status.fleet is not None:
        yield "fleet", fleet_line(status.fleet).removeprefix("fleet").strip(), None
    yield "clients", str(status.clients), status.clients - old.clients
    for each in status.top:
        yield f"  {each.client}", str(each.sessions), None
