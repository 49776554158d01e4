"""The base class of the commands that accept the settings of the daemon."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from smtpd_fork.cli.names import CONFIG_VARIABLE, CONTEXT_SETTINGS
from smtpd_fork.cli.options import OPTIONS
from smtpd_fork.cli.setting_option import SettingOption
from smtpd_fork.cli.setting_sources import SettingSources, flag_origin
from smtpd_fork.config import LIMIT_CONNECTIONS, RESERVED_DESCRIPTORS
from smtpd_fork.daemon import raise_descriptor_limit
from smtpd_fork.errors import ExitStatus, SmtpdForkError

__all__ = ["CONFIG_HELP", "BaseCommand", "ExplainedError", "settings_of"]

CONFIG_HELP = "Configuration file (TOML). The command line and the environment override it."

_CONFIG = click.Option(
    ["--config", "config_file"], envvar=CONFIG_VARIABLE, metavar="FILE", type=click.Path(),
    help=CONFIG_HELP,
)  # fmt: skip


class ExplainedError(SmtpdForkError):
    """An error in one line, with the origin of the setting that caused it."""

    def __init__(self, message: str, status: ExitStatus) -> None:
        super().__init__(message)
        self.exit_status = status


class BaseCommand(click.Command):
    """A command with its own *params*, an option for each setting, and ``--config``."""

    def __init__(self, name: str, *, params: Sequence[click.Parameter] = (), **more: Any) -> None:
        self._own = params
        params = [*params, *OPTIONS, _CONFIG]
        super().__init__(name, params=params, context_settings=CONTEXT_SETTINGS, **more)

    def make_context(self, *args: Any, **more: Any) -> click.Context:
        """Return the context of a call (click's method).

        :raises click.UsageError: the arguments are invalid; the text is one line
        """
        try:
            return super().make_context(*args, **more)
        except click.UsageError as error:
            raise click.UsageError(self.usage_text(error)) from error

    def usage_text(self, error: click.UsageError) -> str:
        """Return click's error as one line; an invalid environment variable is named."""
        text, option = error.format_message(), getattr(error, "param", None)
        if isinstance(option, SettingOption) and error.ctx is not None:
            if option.is_flag:  # a flag gets a value only from the environment
                value = os.environ.get(str(option.envvar))
                return f"{option.envvar} {value!r}: expected true or false"
            text += f" (from {flag_origin(error.ctx, option)})"
        return text

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options by section; those that only this command has come first."""
        records: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            section = "Options" if param in self._own else "Other"
            if isinstance(param, SettingOption):
                section = param.section
            if record := param.get_help_record(ctx):
                records.setdefault(section, []).append(record)
        for section, rows in records.items():
            with formatter.section(section):
                formatter.write_dl(rows, col_max=28)


@contextmanager
def settings_of(ctx: click.Context) -> Iterator[SettingSources]:
    """Yield the settings of the call of *ctx*, and add origins to the errors in this context.

    :raises ConfigError: the file of ``--config`` cannot be read
    :raises ExplainedError: replaces an error that is raised in this context
    """
    # Before the settings are read: the default of --limit-connections depends on this limit.
    raise_descriptor_limit(LIMIT_CONNECTIONS + RESERVED_DESCRIPTORS)
    sources = SettingSources.of(ctx)
    try:
        yield sources
    except SmtpdForkError as error:
        raise ExplainedError(sources.explain(error), sources.status(error)) from error
