"""SettingOption: the command-line option of a setting, with its variable, key and default."""

from __future__ import annotations

import shlex
from typing import Any, get_args, get_type_hints

import click
import msgspec
from click.shell_completion import CompletionItem

from smtpd_fork.cli.names import ENVIRONMENT_PREFIX
from smtpd_fork.config import BOOLEANS, LISTS, READERS, DaemonConfig, WhenFull
from smtpd_fork.units import format_size, parse_mode, parse_size

__all__ = ["DEFAULTS", "TABLES", "SettingOption", "format_setting"]

_HINTS = get_type_hints(DaemonConfig)

DEFAULTS = {field.name: field.default for field in msgspec.structs.fields(DaemonConfig)}

_SETTINGS = {"listen_address": "listen"}
"""Settings whose option has another name."""

TABLES = ("", "tls", "gate")
"""Tables of a configuration file; the first is the top level."""

_TABLE_OF = {"Limits": "gate", "Fleet": "gate", "Lists": "gate", "TLS": "tls"}
"""The table of a setting, by its section in the help."""

_DEFAULT_TEXTS = {
    "dns_server": "those of the system",
    "fleet_node": "--hostname",
    "fleet_tls_ca": "the system's",
    "hostname": "the system's hostname",
    "limit_connections": "1000, or fewer if RLIMIT_NOFILE is low",
    "listen": "all interfaces, IPv4 and IPv6",
    "max_buffered_from_ip": "1/8 of --max-buffered, at least one message; none with -m 0",
    "log_to": "stderr, or journald in a systemd unit; with -d: syslog",
    "tls_key": "in the file of --tls-cert",
    "user": "",
}
"""The texts of defaults that are not constants."""


class _Words(click.types.StringParamType):
    """Text; in the environment several values, separated by spaces.

    Values with spaces are quoted there.
    """

    def split_envvar_value(self, rv: str) -> list[str]:
        lexer = shlex.shlex(rv, posix=True)
        lexer.whitespace_split, lexer.commenters, lexer.escape = True, "", ""
        return list(lexer)


def _choices(hint: Any) -> list[str]:
    return [part for part in get_args(hint) if isinstance(part, str)]


class SettingOption(click.Option):
    """The option of a setting. The settings parse its value, not click.

    :param section: its section in the help
    :param declaration: flags and metavar, in the form of the help: ``-p, --port PORT``
    :param text: the help text
    :ivar section: its section in the help
    :ivar setting: name of the setting
    :ivar long_name: its long flag, without the dashes
    :ivar table: its table in a file; empty for the top level
    :ivar key: its key in that table
    """

    def __init__(self, section: str, declaration: str, text: str) -> None:
        words = declaration.replace(",", "").split()
        flags = [word for word in words if word.startswith("-")]
        self.section = section
        self.long_name = flags[-1][2:]
        name = self.long_name.replace("-", "_")
        self.setting = _SETTINGS.get(name, name)
        self.table = _TABLE_OF.get(section, "")
        self.key = self.long_name.removeprefix("tls-" if self.table == "tls" else "")
        super().__init__(
            [*flags, self.setting],
            help=text,
            metavar=None if words == flags else words[-1],
            multiple=self.setting in LISTS,
            type=_Words() if self.setting in LISTS else None,
            is_flag=self.setting in BOOLEANS or None,  # click would take False for a value
            envvar=ENVIRONMENT_PREFIX + name.upper(),
        )

    def value_from_envvar(self, ctx: click.Context) -> Any:
        """Return the value, or values, of the environment variable (click's method)."""
        try:
            return super().value_from_envvar(ctx)
        except ValueError:
            raise click.UsageError(f"{self.envvar}: a quotation mark is not closed") from None

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return the possible values of the setting, or let the shell complete a file name."""
        if values := _choices(_HINTS[self.setting]):
            return [CompletionItem(value) for value in values if value.startswith(incomplete)]
        return [CompletionItem(incomplete, type="file")]

    def get_default(self, ctx: click.Context, call: bool = True) -> Any:
        """Return None, as the settings have their defaults themselves."""
        return None

    @property
    def default_text(self) -> str:
        """The default in the form of the help; empty without one."""
        return _DEFAULT_TEXTS.get(self.setting) or _format_default(self.setting)

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return the flags, and the help text with the default at its end."""
        record = super().get_help_record(ctx)
        if record is None or not self.default_text:
            return record
        return record[0], f"{record[1]}  [{self.default_text}]"


def format_setting(name: str, value: Any) -> Any:
    """Return a setting's value in the form of options: ``"32M"``, ``"300s"``, ``"0660"``.

    A value without a unit is returned unchanged: a number, a text, a boolean, a tuple, None.
    """
    reader = READERS.get(name)
    if reader is parse_size and value is not None:
        return format_size(value)
    if reader is parse_mode:
        return f"{value:04o}"
    if isinstance(value, float):
        return f"{value:g}s"
    return str(value) if isinstance(value, WhenFull) else value


def _format_default(name: str) -> str:
    default = DEFAULTS[name]
    if default is False or default is None or default is msgspec.NODEFAULT:
        return ""
    text = format_setting(name, default)
    return ", ".join(map(str, text)) if isinstance(text, tuple) else str(text)
