"""The command that starts the daemon, and the table of all other commands."""

from __future__ import annotations

import os
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import click

from smtpd_fork.cli.base_command import BaseCommand, settings_of
from smtpd_fork.cli.check import check
from smtpd_fork.cli.control import CONTROL_COMMANDS
from smtpd_fork.cli.dispatch import fail, run
from smtpd_fork.cli.names import COMPLETION_VARIABLE, ENVIRONMENT_PREFIX, PROGRAM
from smtpd_fork.cli.show_config import config
from smtpd_fork.cli.start import start
from smtpd_fork.cli.startup_resources import StartupResources
from smtpd_fork.cli.try_transaction import try_command
from smtpd_fork.daemon import Invocation, Successor, become_init_if_pid_1
from smtpd_fork.errors import ExitStatus, SmtpdForkError
from smtpd_fork.version import __version__

__all__ = ["SUBCOMMANDS", "command", "run_daemon"]

_HELP = """\
SMTP daemon with connection limits: accepts, defers or refuses clients, and passes the messages of
accepted clients to handlers. Without options it listens on port 2525 of all interfaces and writes
messages to ./Maildir.
"""
_EPILOG = f"""\
Each option can also be set by an environment variable, {ENVIRONMENT_PREFIX} and its long name:
{ENVIRONMENT_PREFIX}MAX_FROM_IP=10. Values of a repeatable option are separated by spaces there;
"a value with spaces" is quoted.
Precedence: command line, environment, configuration file, defaults.
"""


def _serve(**_: Any) -> int:
    ctx = click.get_current_context()
    with settings_of(ctx) as sources:
        return start(sources, ctx.obj)


class _Main(BaseCommand):
    """The command that starts the daemon; its help lists the other commands as well."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands, and the options."""
        with formatter.section("Commands"):
            formatter.write_dl(list(SUMMARIES.items()), col_max=28)
        super().format_options(ctx, formatter)

    def usage_text(self, error: click.UsageError) -> str:
        """Return click's error as one line."""
        text = super().usage_text(error)
        for name in SUBCOMMANDS:
            if text == f"Got unexpected extra argument ({name})":
                return f"{name} has to be the first argument: {PROGRAM} {name} [OPTIONS]"
        return text


command = click.version_option(__version__, prog_name=PROGRAM)(
    _Main(PROGRAM, callback=_serve, help=_HELP, epilog=_EPILOG)
)

SUBCOMMANDS: dict[str, click.Command] = {
    "check": check,
    "config": config,
    "try": try_command,
    **CONTROL_COMMANDS,
}
"""The commands that the first argument may name; without one, the daemon is started."""

SUMMARIES = {name: chosen.get_short_help_str(limit=200) for name, chosen in SUBCOMMANDS.items()}
"""The first sentence of each command's help."""


def run_daemon(words: Sequence[str]) -> int:
    """Start the daemon, or run the command that *words* begins with; return the exit status."""
    if COMPLETION_VARIABLE in os.environ:
        click.Group(PROGRAM, commands=SUBCOMMANDS, params=command.params).main(prog_name=PROGRAM)
    if words and words[0] in SUBCOMMANDS:
        return run(SUBCOMMANDS[words[0]], f"{PROGRAM} {words[0]}", words[1:])
    if words and words[0][:1] not in {"", "-"}:
        return fail(None, _no_such_command(words[0]), ExitStatus.USAGE)
    resources = StartupResources(Invocation.current())
    try:
        resources.under_init = become_init_if_pid_1()
        resources.successor = Successor.from_environment(os.environ)
    except SmtpdForkError as error:
        return fail(resources, str(error), error.exit_status)
    return run(command, PROGRAM, words, resources)


def _no_such_command(name: str) -> str:
    near = get_close_matches(name, SUBCOMMANDS, 1)
    hint = f"; did you mean {near[0]}?" if near else "."
    return f"no such command {name!r}{hint} Commands: {', '.join(SUBCOMMANDS)}"
