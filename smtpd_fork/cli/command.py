"""The command line: click's part, and the last word on every error.

Every fault of a start is one line on standard error that names the value and where it came from,
and an exit status from sysexits.h.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from smtpd_fork.cli.base_command import BaseCommand, Fault, settings_of
from smtpd_fork.cli.check import check
from smtpd_fork.cli.control import CONTROL_COMMANDS
from smtpd_fork.cli.options import ENVIRONMENT_PREFIX, SettingOption
from smtpd_fork.cli.setting_sources import flag_origin
from smtpd_fork.cli.show_config import config
from smtpd_fork.cli.start import start
from smtpd_fork.cli.startup_resources import StartupResources
from smtpd_fork.daemon import Invocation, Successor, become_init_if_first, fill_standard_descriptors
from smtpd_fork.errors import ExitStatus, SmtpdForkError
from smtpd_fork.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["SUBCOMMANDS", "command", "main"]

PROGRAM = "smtpd-fork"

_HELP = """\
Serve SMTP: bind the sockets, count the sessions, defer or refuse what does not fit, and hand the
rest to handlers. Without options: port 2525 on all interfaces, mail into ./Maildir.
"""
_EPILOG = f"""\
Each option may also come from the environment, as {ENVIRONMENT_PREFIX} and its long name:
{ENVIRONMENT_PREFIX}MAX_FROM_IP=10. Repeatable ones take several words there. Flags win.
"""


def _serve(**values: Any) -> int:
    ctx = click.get_current_context()
    with settings_of(ctx, values) as sources:
        return start(sources, ctx.obj)


class _Main(BaseCommand):
    """The daemon's own command, whose help names the others as well."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands, and the options."""
        with formatter.section("Commands"):
            formatter.write_dl(list(SUMMARIES.items()), col_max=28)
        super().format_options(ctx, formatter)


command = _Main(
    PROGRAM,
    params=[
        click.version_option(__version__, prog_name=PROGRAM)(lambda: None).__click_params__[0],  # type: ignore[attr-defined]
    ],
    callback=_serve,
    help=_HELP,
    epilog=_EPILOG,
)

SUBCOMMANDS: dict[str, click.Command] = {"check": check, "config": config, **CONTROL_COMMANDS}
"""What the first argument may name; anything else is the daemon's."""

SUMMARIES = {name: chosen.get_short_help_str(limit=200) for name, chosen in SUBCOMMANDS.items()}
"""The first sentence of each one's help."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    fill_standard_descriptors()
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in SUBCOMMANDS:
        name = words.pop(0)
        return _run(SUBCOMMANDS[name], f"{PROGRAM} {name}", words, None)
    resources = StartupResources(Invocation.current())
    try:
        resources.under_init = become_init_if_first()
        resources.successor = Successor.of_environment(os.environ)
    except SmtpdForkError as error:
        return _fail(resources, str(error), error.exit_status)
    return _run(command, PROGRAM, words, resources)


def _run(
    chosen: click.Command, name: str, words: list[str], resources: StartupResources | None
) -> int:
    try:
        status = chosen.main(args=words, prog_name=name, standalone_mode=False, obj=resources)
    except SmtpdForkError as error:
        return _fail(resources, str(error), error.exit_status)
    except Fault as error:
        return _fail(resources, error.message, error.status)
    except click.ClickException as error:
        text = _usage(error) if isinstance(error, click.UsageError) else error.message
        return _fail(resources, text, ExitStatus.USAGE)
    except click.Abort:  # click's name for an interrupt
        return 130
    return int(status or ExitStatus.OK)


def _fail(resources: StartupResources | None, text: str, status: int) -> int:
    """Say what is wrong, also to the process whose place this one was to take."""
    if resources is not None and resources.successor is not None:
        resources.successor.failed(text)
    _complain(text)
    return int(status)


def _usage(error: click.UsageError) -> str:
    """Return click's complaint as one line, with the variable that is to blame, if one is."""
    text = error.format_message()
    option = getattr(error, "param", None)
    if isinstance(option, SettingOption) and error.ctx is not None:
        text += f" (from {flag_origin(error.ctx, option)})"
    return text


def _complain(text: str) -> None:
    sys.stderr.write(f"{PROGRAM}: {' '.join(text.split())}\n")
