"""``smtpd-fork config``: the settings in force, and where each of them came from.

What it prints is a file that ``--config`` takes, but for what is hidden.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from smtpd_fork.cli.config_file import key_of
from smtpd_fork.cli.options import OPTIONS, format_setting
from smtpd_fork.cli.settings_command import SettingsCommand, faults
from smtpd_fork.sanitizer import hidden, shown_handlers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smtpd_fork.cli.given import Given
    from smtpd_fork.cli.options import SettingOption
    from smtpd_fork.config import DaemonConfig

__all__ = ["config", "toml"]


def toml(value: Any) -> str:
    """Return a setting's value as TOML has it."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, tuple | list):
        return f"[{', '.join(toml(each) for each in value)}]"
    return json.dumps(value)


def _line(option: SettingOption, config: DaemonConfig, given: Given) -> str:
    name = str(option.name)
    _, key = key_of(name)
    value = format_setting(name, getattr(config, name))
    origin = given.origin(name)
    if value is None or value == ():
        return f"# {key} =  # {origin or 'default'}{_default(option)}"
    text = hidden(toml(shown_handlers(value) if name == "handler" else value))
    return f"{key} = {text}  # {origin or 'default'}"


def _default(option: SettingOption) -> str:
    return f": {option.default_text}" if option.default_text else ": none"


def settings_lines(config: DaemonConfig, given: Given) -> Iterator[str]:
    """Return the lines of a file with all settings."""
    yield f"# smtpd-fork, settings of {given.path or 'no file'}"
    for table in ("", "tls", "gate"):
        if table:
            yield ""
            yield f"[{table}]"
        for option in OPTIONS:
            if key_of(str(option.name))[0] == table:
                yield _line(option, config, given)


def _show(**values: Any) -> None:
    with faults(click.get_current_context(), values) as given:
        for line in settings_lines(given.build(), given):
            click.echo(line)


config = SettingsCommand(
    "config",
    callback=_show,
    help="Print the settings in force, as a file for --config, each with where it came from. "
    "Arguments of handlers are hidden: they may be secrets.",
)
