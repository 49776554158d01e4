"""``smtpd-fork config``: the settings in force, each with its origin.

The output is a file for ``--config``, except for what is hidden. The standard library does not
write TOML; a library that does would be one more dependency for :func:`toml`, which is short.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from smtpd_fork.cli.base_command import BaseCommand, settings_of
from smtpd_fork.cli.options import OPTIONS, TABLES, format_setting
from smtpd_fork.sanitizer import hidden, shown_handlers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smtpd_fork.cli.options import SettingOption
    from smtpd_fork.cli.setting_sources import SettingSources
    from smtpd_fork.config import DaemonConfig

__all__ = ["config", "toml"]


def toml(value: Any) -> str:
    """Return the value of a setting in TOML."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, tuple | list):
        return f"[{', '.join(toml(each) for each in value)}]"
    return json.dumps(value)


def _line(option: SettingOption, config: DaemonConfig, origin: str) -> str:
    value = format_setting(option.setting, getattr(config, option.setting))
    if value is None or value == ():
        return f"# {option.key} =  # {origin}: {option.default_text or 'none'}"
    text = hidden(toml(shown_handlers(value) if option.setting == "handler" else value))
    return f"{option.key} = {text}  # {origin}"


def _lines(config: DaemonConfig, sources: SettingSources) -> Iterator[str]:
    yield f"# smtpd-fork, settings of {sources.path or 'no file'}"
    for table in TABLES:
        if table:
            yield ""
            yield f"[{table}]"
        for option in OPTIONS:
            if option.table == table:
                yield _line(option, config, sources.origin(option.setting) or "default")


def _show(**values: Any) -> None:
    with settings_of(click.get_current_context(), values) as sources:
        for line in _lines(sources.build(), sources):
            click.echo(line)


config = BaseCommand(
    "config",
    callback=_show,
    help="Print the settings in force, as a file for --config, each with where it came from. "
    "Arguments of handlers are hidden: they may be secrets.",
)
