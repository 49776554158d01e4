"""The commands of an administrator, each a question to a daemon that runs."""

from __future__ import annotations

import os
import sys
import time
from functools import wraps
from typing import TYPE_CHECKING, Any

import click
import msgspec

from smtpd_fork.cli.control import output, replies
from smtpd_fork.cli.control.connection import Connection, GoneError
from smtpd_fork.cli.control.watch import watch
from smtpd_fork.errors import ProtocolError
from smtpd_fork.units import parse_duration

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CONTROL_COMMANDS"]

VARIABLE = "SMTPD_FORK_CONTROL"
"""The daemon's own variable for its socket: who starts both from one environment says it once."""

POLL_SECONDS = 0.5
"""How often it is looked whether a daemon has drained."""

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 80}

CONTROL_COMMANDS: dict[str, click.Command] = {}
"""The commands, by their names."""


def _command(*params: click.Parameter) -> Callable[[Callable[..., None]], click.Command]:
    """Make a command of a function that is given the connection, and *params* by name."""

    def make(function: Callable[..., None]) -> click.Command:
        @wraps(function)
        def callback(control: str | None, **values: Any) -> None:
            if not control:
                raise click.UsageError(
                    f"name the daemon's control socket: --control PATH, or {VARIABLE}"
                )
            try:
                with Connection(control) as connection:
                    function(connection, **values)
            except BrokenPipeError:
                # Who read it has seen enough; Python is not to complain at its end.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

        name = function.__name__.strip("_")
        where = click.Option(
            ["--control"], metavar="PATH", envvar=VARIABLE,
            help=f"The daemon's control socket. [{VARIABLE}]",
        )  # fmt: skip
        CONTROL_COMMANDS[name] = click.Command(
            name,
            params=[*params, where],
            callback=callback,
            help=function.__doc__,
            context_settings=_CONTEXT,
        )
        return CONTROL_COMMANDS[name]

    return make


def _json(help: str = "Print JSON.") -> click.Option:  # noqa: A002 - click's name
    return click.Option(["--json", "as_json"], is_flag=True, help=help)


@_command(
    _json(),
    click.Option(["--watch", "watching"], is_flag=True, help="Go on, once a second, to Ctrl-C."),
)
def _status(connection: Connection, *, as_json: bool, watching: bool) -> None:
    """Tell how the daemon is: sessions, sources, who was admitted and refused."""
    if watching:
        watch(connection, as_json=as_json)
    elif as_json:
        output.say_json(connection.ask_for_json("status"), indent=2)
    else:
        for line in output.status_lines(connection.ask("status", replies.Status)):
            output.say(line)


@_command(_json("Print JSON, a session a line."))
def _sessions(connection: Connection, *, as_json: bool) -> None:
    """List who holds a place, the oldest first: id, age, what they do."""
    if not as_json:
        output.say(output.SESSION_HEADER)
    after = None
    while True:
        page = connection.ask("sessions", replies.Sessions, after=after)
        for session in page.sessions:
            if as_json:
                output.say_json(session)
            else:
                output.say(output.session_line(_session(session)))
        after = page.next
        if after is None:
            return


def _session(told: dict[str, Any]) -> replies.Session:
    try:
        return msgspec.convert(told, replies.Session)
    except msgspec.ValidationError as error:
        raise ProtocolError(f"a session that cannot be read: {error}") from None


@_command(
    click.Argument(["name"], metavar="[ID]", required=False),
    click.Option(
        ["--source"], metavar="ADDR", help="All of an address (as it is counted), or a network."
    ),
)
def _kick(connection: Connection, *, name: str | None, source: str | None) -> None:
    """End a session, or all of a source; they are told 421 and closed.

    The ID is that of `smtpd-fork sessions` and of the log. A message that a handler has is taken
    and answered first.
    """
    if (name is None) == (source is None):
        raise click.UsageError("name the ID of a session, or --source ADDR")
    kicked = connection.ask("kick", replies.Kicked, id=name, source=source).kicked
    output.say(f"{kicked} session{'' if kicked == 1 else 's'} ended")


@_command(
    _json(),
    click.Argument(["changes"], metavar="[NAME=VALUE]...", nargs=-1),
)
def _limits(connection: Connection, *, as_json: bool, changes: tuple[str, ...]) -> None:
    """Show the limits of the gate, or change some of them.

    As in `limits limit_connections=200 max_from_ip=10`. The names are the options'; a repeatable
    one may be named several times, which replaces all of its values, and `rate=` clears it. What
    is changed holds until the next reload or restart.
    """
    wanted: dict[str, list[str]] = {}
    for change in changes:
        name, equals, value = change.partition("=")
        if not equals or not name:
            raise click.UsageError(f"write NAME=VALUE, not {change!r}")
        values = wanted.setdefault(name.lstrip("-").replace("-", "_"), [])
        if value:
            values.append(value)
    fields = {"set": wanted} if wanted else {}
    if as_json:
        output.say_json(connection.ask_for_json("limits", **fields), indent=2)
        return
    limits = connection.ask("limits", replies.Limits, **fields)
    for line in output.limit_lines(limits):
        output.say(line)
    if limits.warning:
        output.say(f"warning: {limits.warning}")


@_command()
def _pause(connection: Connection) -> None:
    """Let nobody in until `resume`; sessions that are in go on."""
    output.say(connection.ask("pause", replies.State).state)


@_command()
def _resume(connection: Connection) -> None:
    """Let clients in again after `pause`."""
    output.say(connection.ask("resume", replies.State).state)


@_command(
    click.Option(
        ["--timeout"], metavar="TIME", help="Stop after that long, as SIGTERM does: 5m, 30s."
    ),
    click.Option(["--wait"], is_flag=True, help="Return when the daemon has ended."),
)
def _drain(connection: Connection, *, timeout: str | None, wait: bool) -> None:
    """Accept no more, let the sessions end, and end the daemon."""
    try:
        seconds = None if timeout is None else parse_duration(timeout)
    except ValueError as error:
        raise click.UsageError(f"--timeout {timeout!r}: {error}") from None
    reply = connection.ask("drain", replies.State, seconds=seconds)
    output.say(f"{reply.state}: {reply.sessions} sessions left")
    try:
        while wait:
            time.sleep(POLL_SECONDS)
            connection.ask("status", replies.Status)
    except GoneError:
        output.say("ended")


@_command(
    _json(),
    click.Argument(["name"], metavar="ID"),
)
def _explain(connection: Connection, *, as_json: bool, name: str) -> None:
    """Tell why a client was refused, by the ID in its reply and in the log."""
    if as_json:
        output.say_json(connection.ask_for_json("explain", id=name), indent=2)
        return
    for line in output.explanation_lines(connection.ask("explain", replies.Explanation, id=name)):
        output.say(line)
