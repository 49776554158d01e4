"""Given: the settings that were given, and where each of them came from.

Flags beat the environment, the environment beats the file, and the file beats the defaults.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from click.core import ParameterSource

from smtpd_fork.cli.config_file import ConfigFile, read_config_file, shortened
from smtpd_fork.cli.options import ENVIRONMENT_PREFIX, OPTIONS
from smtpd_fork.cli.resolve_paths import resolve_paths
from smtpd_fork.config import DaemonConfig, SettingError
from smtpd_fork.errors import ExitStatus, SmtpdForkError
from smtpd_fork.sanitizer import shown_handlers

if TYPE_CHECKING:
    from collections.abc import Mapping

    import click

__all__ = ["CONFIG_VARIABLE", "Given"]

CONFIG_VARIABLE = ENVIRONMENT_PREFIX + "CONFIG"

_FLAGS = {str(option.name): "/".join(option.opts) for option in OPTIONS}


class Given:
    """The settings that were given.

    :param flags: those of the command line and the environment
    :param origins: where each of them came from, in words
    :param file: the other ones
    :param folder: what relative paths are in; default: the current one
    """

    def __init__(
        self,
        flags: Mapping[str, Any],
        origins: Mapping[str, str],
        file: ConfigFile | None,
        folder: Path | None = None,
    ) -> None:
        self._flags = flags
        self._flag_origins = origins
        self._file = file
        self._folder = folder or _current_folder()
        self.values: dict[str, Any] = {**(file.values if file is not None else {}), **flags}

    @classmethod
    def of(cls, ctx: click.Context, values: Mapping[str, Any], path: str | None) -> Self:
        """Return what click found, and what is in the file at *path*.

        :raises ConfigError: the file cannot be read, or is none
        """
        # An option that was not given, or not given once, leaves the others alone.
        flags = {name: value for name, value in values.items() if value not in (None, ())}
        flags = {
            name: value
            for name, value in flags.items()
            if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT
        }
        origins = {
            str(option.name): str(option.envvar)
            if ctx.get_parameter_source(str(option.name)) is ParameterSource.ENVIRONMENT
            else _FLAGS[str(option.name)]
            for option in OPTIONS
            if option.name in flags
        }
        return cls(flags, origins, read_config_file(Path(path)) if path else None)

    @property
    def path(self) -> Path | None:
        """The file, absolute, or None."""
        return self._file.path if self._file is not None else None

    def again(self) -> Self:
        """Return the same, with the file as it is now.

        :raises ConfigError: the file cannot be read, or is none
        """
        file = read_config_file(self._file.path) if self._file is not None else None
        return type(self)(self._flags, self._flag_origins, file, self._folder)

    def build(self) -> DaemonConfig:
        """Return the settings, each checked.

        :raises SmtpdForkError: one cannot be read, or is out of its range
        """
        values = self.values
        if self._folder is not None and self._folder != _current_folder():
            values = {"handler": ("maildir",), **values}
            values = {
                name: resolve_paths(name, value, self._folder) for name, value in values.items()
            }
        return DaemonConfig.build(values)

    def says_otherwise(self, other: Given, setting: str) -> bool:
        """Whether *setting* has another value here than in *other*."""
        return bool(self.values.get(setting) != other.values.get(setting))

    def origin(self, setting: str) -> str:
        """Return what gave *setting*: a flag, a variable, or a place in the file; else empty."""
        if setting in self._flags:
            return self._flag_origins.get(setting, "")
        if self._file is not None and setting in self._file.values:
            return f"{self._file.path}: {self._file.keys[setting]}"
        return ""

    def explain(self, error: SmtpdForkError) -> str:
        """Return *error* in words, with where the settings that led to it came from."""
        if isinstance(error, SettingError):
            origin = self.origin(error.setting) or _FLAGS.get(error.setting, error.setting)
            value = shown_handlers(error.value) if error.setting == "handler" else error.value
            return f"{origin} {shortened(value)}: {error.reason}"
        where = ", ".join(origin for setting in error.settings if (origin := self.origin(setting)))
        by = f" (from {where})" if where else " (by default)" if error.settings else ""
        return f"{error}{by}"

    def status(self, error: SmtpdForkError) -> int:
        """Return the exit status of *error*: what is wrong in a file is no fault of usage."""
        file = self._file.values if self._file is not None else {}
        from_file = (
            isinstance(error, SettingError)
            and error.setting in file
            and error.setting not in self._flags
        )
        return ExitStatus.CONFIG if from_file else error.exit_status

    @staticmethod
    def strays() -> list[str]:
        """Return the variables that look like an option's and are none."""
        known = {option.envvar for option in OPTIONS} | {CONFIG_VARIABLE}
        found = os.environ.keys() - known
        return sorted(name for name in found if name.startswith(ENVIRONMENT_PREFIX))


def _current_folder() -> Path | None:
    try:
        return Path.cwd()
    except OSError:
        return None  # it was removed; the start tells
