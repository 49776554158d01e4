"""The command line: click's part, and the last word on every error.

Every fault of a start is one line on standard error that names the value and where it came from,
and an exit status from sysexits.h.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from smtpd_fork.cli.holdings import Holdings
from smtpd_fork.cli.options import ENVIRONMENT_PREFIX, OPTIONS, SECTIONS, SettingOption
from smtpd_fork.cli.start import start
from smtpd_fork.config import (
    LIMIT_CONNECTIONS,
    RESERVED_DESCRIPTORS,
    DaemonConfig,
    SettingError,
)
from smtpd_fork.daemon import (
    Heir,
    Origin,
    become_init_if_first,
    fill_standard_descriptors,
    raise_descriptor_limit,
)
from smtpd_fork.errors import ExitStatus, SmtpdForkError
from smtpd_fork.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["command", "main"]

PROGRAM = "smtpd-fork"
HELP_WIDTH = 80

_HELP = """\
Serve SMTP: bind the sockets, count the sessions, defer or refuse what does not fit, and hand the
rest to handlers. Without options: port 2525 on all interfaces, mail into ./Maildir.
"""
_EPILOG = f"""\
Each option may also come from the environment, as {ENVIRONMENT_PREFIX} and its long name:
{ENVIRONMENT_PREFIX}MAX_FROM_IP=10. Repeatable ones take several words there. Flags win.
"""


class _Command(click.Command):
    """A command whose help has its options under headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, section by section."""
        for section in SECTIONS:
            records = [
                record
                for option in OPTIONS
                if option.section == section and (record := option.get_help_record(ctx))
            ]
            with formatter.section(section):
                formatter.write_dl(records, col_max=28)
        rest = [p.get_help_record(ctx) for p in self.get_params(ctx) if p not in OPTIONS]
        with formatter.section("Other"):
            formatter.write_dl([record for record in rest if record], col_max=28)


def _explain(ctx: click.Context, error: SmtpdForkError) -> str:
    """Return *error* in words, with where the settings that led to it came from."""
    if isinstance(error, SettingError):
        return f"{_origin(ctx, error.setting)} {error.value!r}: {error.reason}"
    where = ", ".join(_origin(ctx, s) for s in error.settings if _was_given(ctx, s))
    by = f" (from {where})" if where else " (by default)" if error.settings else ""
    return f"{error}{by}"


def _was_given(ctx: click.Context, setting: str) -> bool:
    source = ctx.get_parameter_source(setting)
    return source in {ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT}


def _origin(ctx: click.Context, setting: str) -> str:
    """Return the flag or the environment variable that gave *setting*."""
    for option in OPTIONS:
        if option.name == setting:
            if ctx.get_parameter_source(setting) is ParameterSource.ENVIRONMENT:
                return str(option.envvar)
            return "/".join(option.opts)
    return setting


def _run(ctx: click.Context, /, **values: Any) -> None:
    # An option that was not given, or not given once, leaves the default alone.
    given = {name: value for name, value in values.items() if value not in (None, ())}
    # First, as the default of --limit-connections is what the limit of open files allows.
    raise_descriptor_limit(LIMIT_CONNECTIONS + RESERVED_DESCRIPTORS)
    try:
        config = DaemonConfig.build(given)
        start(config, ctx.obj, explain=partial(_explain, ctx), strays=_strays())
    except SmtpdForkError as error:
        raise click.ClickException(_explain(ctx, error)) from error


def _strays() -> list[str]:
    """Return the variables that look like an option's and are none."""
    known = {option.envvar for option in OPTIONS}
    return sorted(name for name in os.environ.keys() - known if name.startswith(ENVIRONMENT_PREFIX))


def _callback(**values: Any) -> None:
    _run(click.get_current_context(), **values)


command = _Command(
    PROGRAM,
    params=[
        *OPTIONS,
        click.version_option(__version__, prog_name=PROGRAM)(lambda: None).__click_params__[0],  # type: ignore[attr-defined]
    ],
    callback=_callback,
    help=_HELP,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": HELP_WIDTH},
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    fill_standard_descriptors()
    holdings = Holdings(Origin.here())
    try:
        holdings.under_init = become_init_if_first()
        holdings.heir = Heir.of_environment(os.environ)
        command.main(args=arguments, prog_name=PROGRAM, standalone_mode=False, obj=holdings)
    except click.ClickException as error:
        cause = error.__cause__
        status = cause.exit_status if isinstance(cause, SmtpdForkError) else ExitStatus.USAGE
        text = _usage(error) if isinstance(error, click.UsageError) else error.message
        return _fail(holdings, text, status)
    except SmtpdForkError as error:
        return _fail(holdings, str(error), error.exit_status)
    except click.Abort:  # click's name for an interrupt
        return 130
    return int(ExitStatus.OK)


def _fail(holdings: Holdings, text: str, status: ExitStatus) -> int:
    """Say what is wrong, also to the process whose place this one was to take."""
    if holdings.heir is not None:
        holdings.heir.failed(text)
    _complain(text)
    return int(status)


def _usage(error: click.UsageError) -> str:
    """Return click's complaint as one line, with the variable that is to blame, if one is."""
    text = error.format_message()
    option = getattr(error, "param", None)
    if isinstance(option, SettingOption) and error.ctx is not None:
        text += f" (from {_origin(error.ctx, str(option.name))})"
    return text


def _complain(text: str) -> None:
    sys.stderr.write(f"{PROGRAM}: {' '.join(text.split())}\n")
