"""SettingsCommand: a command that takes the daemon's settings, with its help under headings."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from smtpd_fork.cli.given import CONFIG_VARIABLE, Given
from smtpd_fork.cli.options import OPTIONS, SECTIONS
from smtpd_fork.config import LIMIT_CONNECTIONS, RESERVED_DESCRIPTORS
from smtpd_fork.daemon import raise_descriptor_limit
from smtpd_fork.errors import SmtpdForkError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from smtpd_fork.cli.options import SettingOption

__all__ = ["Fault", "SettingsCommand", "faults", "flag_origin"]

HELP_WIDTH = 80


class Fault(click.ClickException):
    """A fault of a start, in one line.

    :ivar status: the exit status
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = int(status)


class SettingsCommand(click.Command):
    """A command that takes all settings, and ``--config``.

    :param params: what it takes besides
    """

    def __init__(self, name: str, *, params: Sequence[click.Parameter] = (), **more: Any) -> None:
        file = click.Option(
            ["--config", "config_file"], envvar=CONFIG_VARIABLE, metavar="FILE",
            help="Take settings from FILE, TOML; flags and the environment win.",
        )  # fmt: skip
        names = {"help_option_names": ["-h", "--help"], "max_content_width": HELP_WIDTH}
        super().__init__(name, params=[*OPTIONS, file, *params], context_settings=names, **more)

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


@contextmanager
def faults(ctx: click.Context, values: Mapping[str, Any]) -> Iterator[Given]:
    """Gather the settings, and turn what goes wrong from here on into one line.

    :raises Fault: something did
    """
    # First, as the default of --limit-connections is what the limit of open files allows.
    raise_descriptor_limit(LIMIT_CONNECTIONS + RESERVED_DESCRIPTORS)
    flags = dict(values)
    try:
        given = Given.of(ctx, flags, flags.pop("config_file", None))
    except SmtpdForkError as error:
        raise Fault(str(error), error.exit_status) from error
    try:
        yield given
    except SmtpdForkError as error:
        raise Fault(given.explain(error), given.status(error)) from error


def flag_origin(ctx: click.Context, option: SettingOption) -> str:
    """Return the flag or the environment variable that gave *option*."""
    if ctx.get_parameter_source(str(option.name)) is ParameterSource.ENVIRONMENT:
        return str(option.envvar)
    return "/".join(option.opts)
