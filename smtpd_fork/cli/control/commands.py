"""The commands for administrators; each sends requests to a running daemon."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from typing import Any

import click
import msgspec

from smtpd_fork.cli.control import output, replies
from smtpd_fork.cli.control.connection import Connection, GoneError
from smtpd_fork.cli.control.watch import watch
from smtpd_fork.cli.names import CLIENT_VARIABLE, CONTEXT_SETTINGS, CONTROL_VARIABLE
from smtpd_fork.errors import ProtocolError
from smtpd_fork.units import counted, parse_duration

__all__ = ["CONTROL_COMMANDS"]

POLL_SECONDS = 0.5
"""Interval of the checks whether a draining daemon has ended."""

RELOAD_SECONDS = 120.0
"""Time limit of a reload, which may wait for another reload or an upgrade (60 s), and reads
files."""

CONTROL_COMMANDS: dict[str, click.Command] = {}
"""The commands, by their names."""


def _command(*params: click.Parameter) -> Callable[[Callable[..., None]], click.Command]:
    """Return a decorator that creates a command from a function of the connection and *params*."""
    where = click.Option(
        ["--control"], metavar="PATH", envvar=[CLIENT_VARIABLE, CONTROL_VARIABLE],
        help=f"Path of the daemon's control socket. [{CLIENT_VARIABLE}, else {CONTROL_VARIABLE}]",
    )  # fmt: skip

    def make(function: Callable[..., None]) -> click.Command:
        name = function.__name__.strip("_")
        CONTROL_COMMANDS[name] = command = click.Command(
            name,
            params=[*params, where],
            callback=partial(_call, function),
            help=function.__doc__,
            context_settings=CONTEXT_SETTINGS,
        )
        return command

    return make


def _call(function: Callable[..., None], control: str | None, **values: Any) -> None:
    """Call *function* with a connection to the daemon at *control*."""
    if not control:
        raise click.UsageError(
            f"name the daemon's control socket: --control PATH, or {CONTROL_VARIABLE}"
        )
    try:
        with closing(Connection(control)) as connection:
            function(connection, **values)
    except BrokenPipeError:
        # The reader of the pipe has ended. Without this, Python would report an error at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _json(help: str = "Print JSON.") -> click.Option:  # noqa: A002 - click's name
    return click.Option(["--json", "as_json"], is_flag=True, help=help)


@_command(
    _json(),
    click.Option(["--watch", "watching"], is_flag=True, help="Update once a second until Ctrl-C."),
)
def _status(connection: Connection, *, as_json: bool, watching: bool) -> None:
    """Show the state of the daemon: sessions, clients, admitted and refused clients."""
    if watching:
        watch(connection, as_json=as_json)
    elif as_json:
        output.say_json(connection.ask_for_json("status"), indent=2)
    else:
        output.say_lines(output.status_lines(connection.ask("status", replies.Status)))


@_command(_json("Print JSON, one session per line."))
def _sessions(connection: Connection, *, as_json: bool) -> None:
    """List current sessions, oldest first: ID, age, state, client."""
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


def _session(fields: dict[str, Any]) -> replies.Session:
    try:
        return msgspec.convert(fields, replies.Session)
    except msgspec.ValidationError as error:
        raise ProtocolError(f"the daemon sent an invalid session: {error}") from None


@_command(click.Argument(["target"], metavar="ID|NET"))
def _kick(connection: Connection, *, target: str) -> None:
    """End one session by its ID, or all sessions of an address or network, with 421.

    `smtpd-fork sessions` and the log show IDs. If a handler is processing a message, its reply is
    sent first.
    """
    which = "client" if re.search("[.:/]", target) else "id"
    kicked = connection.ask("kick", replies.Kicked, **{which: target.strip("[]")}).kicked
    output.say(f"{counted(kicked, 'session')} ended")


@_command(_json(), click.Argument(["changes"], metavar="[NAME=VALUE]...", nargs=-1))
def _limits(connection: Connection, *, as_json: bool, changes: tuple[str, ...]) -> None:
    """Show the limits, or change some of them until the next reload or restart.

    Example: `limits limit_connections=200 max_from_ip=10`. Names are those of the options. A
    repeatable limit may be given several times, which replaces all its values; `rate=` clears it.
    """
    wanted = _wanted(changes)
    fields = {"set": wanted} if wanted else {}
    if as_json:
        output.say_json(connection.ask_for_json("limits", **fields), indent=2)
    else:
        output.say_lines(output.limit_lines(connection.ask("limits", replies.Limits, **fields)))


def _wanted(changes: Sequence[str]) -> dict[str, list[str]]:
    """Return the new values by setting; an empty list removes a limit."""
    wanted: dict[str, list[str]] = {}
    for change in changes:
        name, equals, value = change.partition("=")
        if not equals or not name:
            raise click.UsageError(f"write NAME=VALUE, not {change!r}")
        values = wanted.setdefault(name.lstrip("-").replace("-", "_"), [])
        if value:
            values.append(value)
    return wanted


@_command(_json())
def _reload(connection: Connection, *, as_json: bool) -> None:
    """Reload the configuration and its files, as SIGHUP does, and print the changes.

    There is one line for each changed setting, with a note if the change needs a restart. If the
    reload fails, the previous settings stay in force, and the exit status is that of a start with
    the same error.
    """
    connection.timeout = RELOAD_SECONDS
    if as_json:
        output.say_json(connection.ask_for_json("reload"), indent=2)
        return
    reloaded = connection.ask("reload", replies.Reloaded)
    output.say_lines([*reloaded.changes, *reloaded.restart] or ["nothing changed"])


@_command(
    _json(),
    click.Argument(["network"], metavar="[NET]", required=False),
    click.Argument(["text"], metavar="[TEXT]...", nargs=-1),
    click.Option(
        ["--for", "time"], metavar="TIME",
        help="End the denial after TIME (30m, 1h). Default: it lasts until undeny or a restart.",
    ),
)  # fmt: skip
def _deny(
    connection: Connection,
    *,
    as_json: bool,
    network: str | None,
    text: tuple[str, ...],
    time: str | None,
) -> None:
    """Refuse new clients of a network with 554, or list the networks denied this way.

    NET is 192.0.2.0/24, 2001:db8::/32 or an address; TEXT is the text of the reply. NET is added to
    the lists of --deny until a restart; a reload or an upgrade keeps it. In a fleet it applies to
    all nodes, also after restarts. Of all denied and allowed networks that contain an address, the
    smallest applies. Open sessions continue: end them with `kick NET`. Without NET, list the
    networks denied at run time, with the time left.
    """
    if network is None:
        if time is not None:
            raise click.UsageError("--for: name a network to deny")
        _list_denials(connection, as_json=as_json)
        return
    seconds = None if time is None else _seconds("--for", time)
    if seconds == 0:
        raise click.UsageError(f"--for {time!r}: must be more than 0")
    given = {"network": network, "text": " ".join(text), "seconds": seconds}
    if as_json:
        output.say_json(connection.ask_for_json("deny", **given), indent=2)
        return
    denial = connection.ask("deny", replies.Denial, **given)
    end = "" if denial.seconds is None else f" for {output.age(denial.seconds)}"
    output.say(f"{denial.network} denied{end}")
    output.say_lines(output.not_shared_lines(denial.untold))


def _list_denials(connection: Connection, *, as_json: bool) -> None:
    if not as_json:
        output.say(output.DENIAL_HEADER)
    after: int | None = 0
    while after is not None:
        page = connection.ask("denials", replies.Denials, after=after)
        for denial in page.denials:
            if as_json:
                output.say_json(msgspec.to_builtins(denial))
            else:
                output.say(output.denial_line(denial))
        after = page.next


@_command(click.Argument(["network"], metavar="NET"))
def _undeny(connection: Connection, *, network: str) -> None:
    """Remove a denial that `deny` has added. Give NET as `deny` lists it."""
    undenied = connection.ask("undeny", replies.Undenied, network=network)
    output.say(f"{network} is no longer denied")
    output.say_lines(output.not_shared_lines(undenied.untold))


@_command()
def _pause(connection: Connection) -> None:
    """Stop admitting new clients until `resume`; open sessions continue."""
    output.say(connection.ask("pause", replies.State).state)


@_command()
def _resume(connection: Connection) -> None:
    """Admit clients again after `pause`."""
    output.say(connection.ask("resume", replies.State).state)


@_command(
    click.Option(["--timeout"], metavar="TIME", help="After TIME (5m, 30s), stop as on SIGTERM."),
    click.Option(["--wait"], is_flag=True, help="Wait until the daemon has exited."),
)
def _drain(connection: Connection, *, timeout: str | None, wait: bool) -> None:
    """Shut down gracefully: stop listening, and exit after the last session."""
    seconds = None if timeout is None else _seconds("--timeout", timeout)
    reply = connection.ask("drain", replies.State, seconds=seconds)
    output.say(f"{reply.state}: {counted(reply.sessions, 'session')} left")
    try:
        while wait:
            time.sleep(POLL_SECONDS)
            connection.ask("status", replies.Status)
    except GoneError:
        output.say("ended")


def _seconds(option: str, text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise click.UsageError(f"{option} {text!r}: {error}") from None


@_command(_json(), click.Argument(["name"], metavar="ID"))
def _explain(connection: Connection, *, as_json: bool, name: str) -> None:
    """Explain a refusal or rejection, by the ID in the reply and in the log."""
    name = name.strip("[]")
    if as_json:
        output.say_json(connection.ask_for_json("explain", id=name), indent=2)
    else:
        explanation = connection.ask("explain", replies.Explanation, id=name)
        output.say_lines(output.explanation_lines(explanation))


@_command(_json(), click.Argument(["client"], metavar="[NET]", required=False))
def _fleet(connection: Connection, *, as_json: bool, client: str | None) -> None:
    """List the nodes of the fleet, or where a client has its sessions.

    NET is an address, or a network as a limit counts it: one line for each shared limit, with the
    count of all nodes, the limit, and the sessions by node.
    """
    if as_json:
        output.say_json(connection.ask_for_json("fleet", client=client), indent=2)
        return
    fleet = connection.ask("fleet", replies.Fleet, client=client)
    if client is not None:
        output.say_lines(map(output.fleet_limit_line, fleet.limits))
        return
    output.say(output.NODE_HEADER)
    output.say_lines(map(output.node_line, fleet.nodes))
    if fleet.fleet is not None:
        output.say(output.fleet_line(fleet.fleet))
