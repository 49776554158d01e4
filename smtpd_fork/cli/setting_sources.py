"""Where settings come from: flags, environment and file, in order of precedence.

Each setting has an origin, which error messages and ``smtpd-fork config`` name. click alone knows
the origins of flags and variables, and no library has those of a file as well.
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
"""Similarity of two variables (:mod:`difflib`); all of them begin the same."""

_FLAGS = {option.setting: "/".join(option.opts) for option in OPTIONS}

_KEYWORD = re.compile("|".join(rf"\b{name}\b" for name in _FLAGS if "_" in name))
"""A setting in an error message, as programs write it; one word may be a word."""

_FILE = re.compile(r"()(.+)")
_LIST = re.compile(r"()((?!\d)(?!.*::).*/.*)")
"""A file among networks: it has a slash, and begins or goes on as no network does."""
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
"""Settings that are paths, or may be: what stands before the path, and the path."""


class SettingSources:
    """The settings of a command, with the origin of each.

    :param flags: settings of the command line and the environment
    :param origins: the flag or the variable of each of them
    :param directory: what relative paths are relative to; default: the current directory
    :ivar share: number of the process, and of how many, between which limits are divided
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
        """Return the settings that click found, and those of the file of ``--config``.

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
        """The directory that relative paths are relative to, if it is not the current one."""
        return self._directory

    @property
    def path(self) -> Path | None:
        """The file, absolute; None without one."""
        return self._file.path if self._file is not None else None

    def read_again(self) -> Self:
        """Return the same, with the file as it is now.

        :raises ConfigError: the file cannot be read
        """
        file = read_config_file(self._file.path) if self._file is not None else None
        again = type(self)(self._flags, self._flag_origins, file, self._directory)
        again.share = self.share
        return again

    def build(self) -> DaemonConfig:
        """Return the settings, checked; of a process under a supervisor, with its share.

        :raises SmtpdForkError: one cannot be read, or is out of its range
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
        """Whether *setting* has another value here than in *other*."""
        return bool(self.values.get(setting) != other.values.get(setting))

    def origin(self, setting: str) -> str:
        """Return the flag, the variable or the place in the file that gave *setting*, or ``""``."""
        if setting in self._flags:
            return self._flag_origins.get(setting, "")
        if self._file is not None and setting in self._file.values:
            return self._file.origin(self._file.keys[setting])
        return ""

    def explain(self, error: SmtpdForkError) -> str:
        """Return the text of *error*, with the origins of the settings that led to it."""
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
        """Return the place in the file of the handler, or of its key, that is wrong."""
        if self._file is None or "handler" in self._flags:
            return origin
        key = f"handler {error.entry}"
        return self._file.origin(f"{key}: {error.key}" if error.key else key)

    def status(self, error: SmtpdForkError) -> ExitStatus:
        """Return the exit status of *error*; a bad value in a file is no usage error."""
        setting = error.setting if isinstance(error, SettingError) else None
        from_file = self._file is not None and setting in self._file.values
        return ExitStatus.CONFIG if from_file and setting not in self._flags else error.exit_status

    @staticmethod
    def unknown_variables() -> list[str]:
        """Return a warning for each environment variable with our prefix that no option has."""
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
    """Return the flag or the environment variable that gave *option*."""
    if ctx.get_parameter_source(option.setting) is ParameterSource.ENVIRONMENT:
        return str(option.envvar)
    return _FLAGS[option.setting]


def resolve_paths(setting: str, value: Any, directory: Path) -> Any:
    """Return the value of a setting with relative paths as paths in *directory*.

    A detached daemon works in ``/``, and a reload reads paths that were written for the directory
    of the start.
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
        return None  # it was removed; the start reports it
