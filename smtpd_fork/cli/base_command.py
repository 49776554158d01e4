"""The base of the commands that take the settings of the daemon."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from smtpd_fork.cli.options import OPTIONS, SECTIONS, SettingOption
from smtpd_fork.cli.setting_sources import CONFIG_VARIABLE, SettingSources
from smtpd_fork.config import LIMIT_CONNECTIONS, RESERVED_DESCRIPTORS
from smtpd_fork.daemon import raise_descriptor_limit
from smtpd_fork.errors import SmtpdForkError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["CONFIG_HELP", "BaseCommand", "Fault", "settings_of"]

HELP_WIDTH = 80

CONFIG_HELP = "Take settings from FILE, TOML; flags and the environment win."


class Fault(click.ClickException):
    """An error that ends the command, in one line.

    :ivar status: the exit status
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = int(status)


class BaseCommand(click.Command):
    """A command with an option for each setting, and ``--config``.

    :param params: its other parameters
    """

    def __init__(self, name: str, *, params: Sequence[click.Parameter] = (), **more: Any) -> None:
        file = click.Option(
            ["--config", "config_file"], envvar=CONFIG_VARIABLE, metavar="FILE",
            help=CONFIG_HELP,
        )  # fmt: skip
        names = {"help_option_names": ["-h", "--help"], "max_content_width": HELP_WIDTH}
        super().__init__(name, params=[*OPTIONS, file, *params], context_settings=names, **more)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, section by section."""
        records: dict[str, list[tuple[str, str]]] = {section: [] for section in SECTIONS}
        for param in self.get_params(ctx):
            section = param.section if isinstance(param, SettingOption) else "Other"
            if record := param.get_help_record(ctx):
                records.setdefault(section, []).append(record)
        for section, rows in records.items():
            with formatter.section(section):
                formatter.write_dl(rows, col_max=28)


@contextmanager
def settings_of(ctx: click.Context, values: Mapping[str, Any]) -> Iterator[SettingSources]:
    """Yield the settings that *ctx* was called with; an error in this context becomes a Fault.

    :raises Fault: in one line, with the origin of the setting that led to it
    """
    # First, as the default of --limit-connections is what the limit of open files allows.
    raise_descriptor_limit(LIMIT_CONNECTIONS + RESERVED_DESCRIPTORS)
    flags = dict(values)
    try:
        sources = SettingSources.of(ctx, flags, flags.pop("config_file", None))
    except SmtpdForkError as error:
        raise Fault(str(error), error.exit_status) from error
    try:
        yield sources
    except SmtpdForkError as error:
        raise Fault(sources.explain(error), sources.status(error)) from error
