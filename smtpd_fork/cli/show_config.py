"""``smtpd-fork config``: prints the effective settings, each with its origin.

The output is a valid file for ``--config``, except for hidden secrets. The standard library cannot
write TOML, and :func:`toml` is too short to need a library for it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from smtpd_fork.cli.base_command import BaseCommand, settings_of
from smtpd_fork.cli.options import OPTIONS
from smtpd_fork.cli.setting_option import TABLES, SettingOption, format_setting
from smtpd_fork.sanitizer import hidden, shown_handlers

if TYPE_CHECKING:
    from smtpd_fork.cli.setting_sources import SettingSources
    from smtpd_fork.config import DaemonConfig

__all__ = ["config", "toml"]


def toml(value: Any) -> str:
    """Return the value of a setting in TOML."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, tuple | list):
        return f"[{', '.join(toml(each) for each in value)}]"
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{key} = {toml(each)}' for key, each in value.items())} }}"
    return json.dumps(value)


def _line(option: SettingOption, config: DaemonConfig, origin: str) -> str:
    value = format_setting(option.setting, getattr(config, option.setting))
    if value is None or value == ():
        return f"# {option.key} =  # {origin}: {option.default_text or 'none'}"
    shown = shown_handlers(value) if option.setting == "handler" else _hidden(value)
    return f"{option.key} = {toml(shown)}  # {origin}"


def _hidden(value: Any) -> Any:
    """Return a value with secrets hidden in each text, before TOML adds quotes to it."""
    if isinstance(value, tuple | list):
        return [_hidden(each) for each in value]
    return hidden(value) if isinstance(value, str) else value


def _lines(config: DaemonConfig, sources: SettingSources) -> Iterator[str]:
    yield f"# smtpd-fork, settings of {sources.path or 'no file'}"
    for table in TABLES:
        if table:
            yield ""
            yield f"[{table}]"
        for option in OPTIONS:
            if option.table == table:
                yield _line(option, config, sources.origin(option.setting) or "default")


def _show(**_: Any) -> None:
    with settings_of(click.get_current_context()) as sources:
        for line in _lines(sources.build(), sources):
            click.echo(line)


config = BaseCommand(
    "config",
    callback=_show,
    help="Print the effective settings as a configuration file, each with its origin. Arguments of "
    "handlers are hidden, as they may be secrets.",
)
