"""SettingSources: the settings from command line, environment and file, by precedence.

Each setting has an origin, which error messages and ``smtpd-fork config`` show. click knows only
the origins of flags and environment variables, and no library those of a file as well.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from click.core import ParameterSource

from smtpd_fork.cli.config_file import ConfigFile, read_config_file, shortened
from smtpd_fork.cli.names import CLIENT_VARIABLE, CONFIG_VARIABLE, ENVIRONMENT_PREFIX
from smtpd_fork.cli.options import OPTIONS
from smtpd_fork.config import DaemonConfig, SettingError
from smtpd_fork.errors import ExitStatus, HandlerError, MissingLibraryError, SmtpdForkError
from smtpd_fork.sanitizer import shown_handlers
from smtpd_fork.setting_types import MissingSettingError
from smtpd_fork.supervisor.shares import divided

if TYPE_CHECKING:
    import click

    from smtpd_fork.cli.setting_option import SettingOption

__all__ = ["SettingSources", "flag_origin"]

ALIKE = 0.85
"""Similarity (:mod:`difflib`) from which on an unknown variable gets a hint; all have one
prefix."""

_FLAGS = {option.setting: "/".join(option.opts) for option in OPTIONS}

_KEYWORD = re.compile("|".join(rf"\b{name}\b" for name in _FLAGS if "_" in name))
"""The name of a setting in an error message. Names of one word are left, as they may be words."""

_FILE = re.compile(r"()(.+)")
_LIST = re.compile(r"()((?!\d)(?!.*::).*/.*)")
"""A file in a list of networks: it has a slash, and does not begin or continue like a network."""
_LOG = re.compile(r"()((?!(?:stderr|stdout|syslog|journald)$).+)")
_UNIX = re.compile(r"((?:[a-z+-]+:)?unix:)(.+)")
_MAILDIR = re.compile(r"(maildir:)((?!~).+)")

_PATHS = {
    **dict.fromkeys(("tls_cert", "tls_key", "tls_client_ca", "pid_file", "control"), _FILE),
    **dict.fromkeys(("fleet_secret", "fleet_tls_ca"), _FILE),
    **dict.fromkeys(("allow", "deny", "exempt", "proxy_trust", "probe_from"), _LIST),
    **dict.fromkeys(("xclient_trust", "xforward_trust"), _LIST),
    **dict.fromkeys(("listen", "metrics", "fleet"), _UNIX),
    "handler": _MAILDIR,
    "log_to": _LOG,
}
"""Settings that are or contain paths: the pattern has the text before the path, and the path."""


class SettingSources:
    """The settings of a command, with the origin of each.

    :param flags: settings of the command line and the environment
    :param origins: the flag or the variable of each of them
    :param file: the file of ``--config``, if there is one
    :param directory: directory for relative paths; default: the current directory
    :ivar share: number of this process and number of all processes, among which limits are divided
    """

    share: tuple[int, int] | None = None

    def __init__(
        self,
        flags: Mapping[str, Any],
        origins: Mapping[str, str],
        file: ConfigFile | None,
        directory: Path | None = None,
    ) -> None:
        self._flags = flags
        self._flag_origins = origins
        self._file = file
        self._directory = directory or _current_directory()
        self.values: dict[str, Any] = {**(file.values if file is not None else {}), **flags}

    @classmethod
    def of(cls, ctx: click.Context) -> Self:
        """Return the settings of a call of click, and those of the file of ``--config``.

        :raises ConfigError: the file cannot be read
        """
        flags = {
            name: value
            for name, value in ctx.params.items()
            if name in _FLAGS
            and value not in (None, ())
            and ctx.get_parameter_source(name) is not ParameterSource.DEFAULT
        }
        origins = {
            option.setting: flag_origin(ctx, option)
            for option in OPTIONS
            if option.setting in flags
        }
        path = ctx.params["config_file"]
        return cls(flags, origins, read_config_file(Path(path)) if path else None)

    @property
    def directory(self) -> Path | None:
        """The directory for relative paths, if it is not the current one."""
        return self._directory

    @property
    def path(self) -> Path | None:
        """The absolute path of the file; None without one."""
        return self._file.path if self._file is not None else None

    def read_again(self) -> Self:
        """Return the settings with the present content of the file.

        :raises ConfigError: the file cannot be read
        """
        file = read_config_file(self._file.path) if self._file is not None else None
        again = type(self)(self._flags, self._flag_origins, file, self._directory)
        again.share = self.share
        return again

    def build(self) -> DaemonConfig:
        """Return the checked settings; a process under a supervisor gets its share of the limits.

        :raises SmtpdForkError: a setting cannot be read, or is out of its range
        """
        config = self._build()
        return config if self.share is None else divided(config, *self.share)

    def _build(self) -> DaemonConfig:
        config, directory = DaemonConfig.build(self.values), self._directory
        if directory is None or not (config.detach or directory != _current_directory()):
            return config
        values = {"handler": ("maildir",), **self.values}
        return DaemonConfig.build(
            {name: resolve_paths(name, value, directory) for name, value in values.items()}
        )

    def differs(self, other: SettingSources, setting: str) -> bool:
        """Return whether *setting* has another value here than in *other*."""
        return bool(self.values.get(setting) != other.values.get(setting))

    def origin(self, setting: str) -> str:
        """Return the flag, variable or line of the file that sets *setting*, or ``""``."""
        if setting in self._flags:
            return self._flag_origins.get(setting, "")
        if self._file is not None and setting in self._file.values:
            return self._file.origin(self._file.keys[setting])
        return ""

    def explain(self, error: SmtpdForkError) -> str:
        """Return the text of *error*, with the origins of the settings that caused it."""
        if isinstance(error, MissingSettingError):
            origin = self.origin(error.setting) or _FLAGS[error.setting]
            text = f" {shortened(error.value)}" if error.setting == "listen" else ""
            return f"{origin}{text} needs {_FLAGS[error.needed]}"
        if isinstance(error, SettingError):
            origin = self.origin(error.setting) or _FLAGS.get(error.setting, error.setting)
            value = shown_handlers(error.value) if error.setting == "handler" else error.value
            reason = _KEYWORD.sub(lambda found: _FLAGS[found[0]], error.reason)
            return f"{origin} {shortened(value)}: {reason}"
        origins = [origin for setting in error.settings if (origin := self.origin(setting))]
        if isinstance(error, HandlerError) and error.entry and len(origins) == 1:
            origins = [self._origin_of_entry(error, origins[0])]
        if isinstance(error, MissingLibraryError) and origins:
            need = "needs" if len(origins) == 1 else "need"
            return f"{' and '.join(origins)} {need} {error.needed}"
        where = " and ".join(origins)
        by = f" (from {where})" if where else " (by default)" if error.settings else ""
        return f"{error}{by}"

    def _origin_of_entry(self, error: HandlerError, origin: str) -> str:
        """Return the line of the file with the handler, or the key of it, that is wrong."""
        if self._file is None or "handler" in self._flags:
            return origin
        key = f"handler {error.entry}"
        return self._file.origin(f"{key}: {error.key}" if error.key else key)

    def status(self, error: SmtpdForkError) -> ExitStatus:
        """Return the exit status of *error*; an invalid value in a file is not a usage error."""
        setting = error.setting if isinstance(error, SettingError) else None
        from_file = self._file is not None and setting in self._file.values
        return ExitStatus.CONFIG if from_file and setting not in self._flags else error.exit_status

    @staticmethod
    def unknown_variables() -> list[str]:
        """Return a warning for each environment variable with our prefix, but without an option."""
        known = [CONFIG_VARIABLE, CLIENT_VARIABLE, *(str(option.envvar) for option in OPTIONS)]
        warnings = []
        for name in sorted(os.environ.keys() - set(known)):
            if name.startswith(ENVIRONMENT_PREFIX):
                near = get_close_matches(name, known, 1, ALIKE)
                near += [each for each in known if each.startswith(f"{name}_")]
                hint = f"; did you mean {near[0]}?" if near else ""
                warnings.append(f"unknown variable {name} ignored{hint}")
        return warnings


def flag_origin(ctx: click.Context, option: SettingOption) -> str:
    """Return the flag or the environment variable that sets *option*."""
    if ctx.get_parameter_source(option.setting) is ParameterSource.ENVIRONMENT:
        return str(option.envvar)
    return _FLAGS[option.setting]


def resolve_paths(setting: str, value: Any, directory: Path) -> Any:
    """Return the value of a setting, with relative paths made absolute by *directory*.

    A detached daemon runs in ``/``, and a reload reads paths that are relative to the directory of
    the start.
    """
    if isinstance(value, (list, tuple)):
        return [resolve_paths(setting, each, directory) for each in value]
    pattern = _PATHS.get(setting)
    if pattern is None or not isinstance(value, str):
        return value
    if setting == "handler" and value == "maildir":
        value = "maildir:Maildir"
    found = pattern.fullmatch(value)
    return value if found is None else f"{found[1]}{directory / found[2]}"


def _current_directory() -> Path | None:
    try:
        return Path.cwd()
    except OSError:
        return None  # the directory was removed; the start reports this error
