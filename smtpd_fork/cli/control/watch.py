"""Watch: the status, once a second: a live table on a terminal, a line each time in a pipe."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from smtpd_fork.cli.control.output import age, say, say_json, summary
from smtpd_fork.cli.control.replies import Status
from smtpd_fork.errors import ConfigError
from smtpd_fork.sanitizer import printable

if TYPE_CHECKING:
    from rich.console import RenderableType

    from smtpd_fork.cli.control.connection import Connection

__all__ = ["watch"]

INTERVAL_SECONDS = 1.0


def watch(connection: Connection, *, as_json: bool) -> None:
    """Show the status until the daemon goes away, or Ctrl-C.

    :raises UnavailableError: the daemon has gone
    :raises ConfigError: there is a terminal, and nothing to draw with
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
        reason = "--watch on a terminal takes rich: install smtpd-fork[cli], or pipe it into cat"
        raise ConfigError(reason) from None
    status = connection.ask("status", Status)
    with Live(_picture(status, None), auto_refresh=False) as live:
        while True:
            time.sleep(INTERVAL_SECONDS)
            before, status = status, connection.ask("status", Status)
            live.update(_picture(status, before), refresh=True)


def _picture(status: Status, before: Status | None) -> RenderableType:
    """Return the status as a table under a line.

    All text is :class:`rich.text.Text`, in which brackets are brackets and no markup.
    """
    from rich.console import Group  # noqa: PLC0415 - as above
    from rich.table import Table  # noqa: PLC0415 - as above
    from rich.text import Text  # noqa: PLC0415 - as above

    title = (
        f"smtpd-fork on {status.hostname}, pid {status.pid}: "
        f"{status.state}, for {age(status.seconds)}"
    )
    table = Table()
    for heading in ("", "now", "a second"):
        table.add_column(heading, justify="left" if not heading else "right")

    def row(name: str, now: str, change: int | None = None) -> None:
        gained = "" if change is None else f"{change / INTERVAL_SECONDS:+g}"
        table.add_row(*(Text(printable(each)) for each in (name, now, gained)))

    old = before or status
    row("sessions", f"{status.sessions} of {status.limit}", status.sessions - old.sessions)
    for phase, count in sorted(status.phases.items()):
        row(f"  {phase}", str(count))
    row("admitted", str(status.admitted), status.admitted - old.admitted)
    row("refused", str(status.refused), status.refused - old.refused)
    for rule, count in sorted(status.rules.items(), key=lambda each: -each[1]):
        row(f"  {rule}", str(count), count - old.rules.get(rule, 0))
    row("sources", str(status.sources), status.sources - old.sources)
    for each in status.top:
        row(f"  {each.source}", str(each.sessions))
    return Group(Text(printable(title)), table)
