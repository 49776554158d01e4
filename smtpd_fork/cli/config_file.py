"""Read the file of ``--config``: settings in TOML (:mod:`tomllib`).

At the top level, a key is the long name of an option, with ``-`` or ``_``. ``[gate]`` contains
limits and lists, ``[tls]`` the settings of TLS without the prefix ``tls-``. ``[[listener]]`` and
``[[handler]]`` are addresses and handlers in the form of tables.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

from smtpd_fork.cli.config_lines import lines_of_keys
from smtpd_fork.cli.options import OPTIONS
from smtpd_fork.cli.setting_option import TABLES
from smtpd_fork.errors import ConfigError
from smtpd_fork.handlers.spec import HandlerEntry, HandlerSpec
from smtpd_fork.sanitizer import HIDDEN, shown_handlers
from smtpd_fork.setting_types import SettingError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["ConfigFile", "read_config_file", "shortened"]

LONGEST_FILE = 1 << 20
"""Bytes; far more than a configuration needs."""

LONGEST_VALUE = 300
"""Characters of a value in an error message; the rest is cut off."""

_SETTINGS = {
    name: option.setting
    for option in OPTIONS
    for name in (option.long_name.replace("-", "_"), option.setting)
}
"""Settings by each name that they may have in a file."""

_IN_TABLE = {
    table: {option.setting for option in OPTIONS if option.table == table} for table in TABLES[1:]
}

_NUMBERS = {option.setting for option in OPTIONS if option.metavar == "N"}

_POSITION = re.compile(r" \(at line (\d+), (column \d+)\)$")
"""The line and column at the end of tomllib's error messages."""

_BARE = re.compile(r"[^\"'\[{][^\"']*")
"""A value without quotes that is neither an array nor a table."""

_TLS = "tls_"
"""Prefix of the names of settings in ``[tls]``, which their keys do not have."""


@dataclass(frozen=True)
class ConfigFile:
    """The settings of a file.

    :ivar path: absolute path of the file
    :ivar text: the text of the file, which is valid TOML
    :ivar values: the values, by setting
    :ivar keys: the key of each setting in the file, such as ``gate.max-from-ip``
    """

    path: Path
    text: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)

    def origin(self, key: str) -> str:
        """Return *key* with the file and, if known, the line: ``FILE, line 3: KEY``."""
        line = self._lines.get(key) or self._lines.get(key.partition(":")[0])
        return f"{self.path}, line {line}: {key}" if line else f"{self.path}: {key}"

    @cached_property
    def _lines(self) -> dict[str, int]:
        return lines_of_keys(self.text)


def read_config_file(path: Path) -> ConfigFile:
    """Read the file *path*.

    :raises ConfigError: it cannot be read, is not TOML, or has an unknown key
    """
    path = path.absolute()
    text = ""
    try:
        text = _read(path)
        document = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8") from None
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply") from None
    except ValueError as error:  # of tomllib, with line and column
        raise ConfigError(_not_toml(path, text, str(error))) from None
    return _Reader(path, text).read(document)


def _read(path: Path) -> str:
    # O_NONBLOCK: open(2) of a FIFO without a writer would block.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("not a regular file")
        data = file.read(LONGEST_FILE + 1)
    if len(data) > LONGEST_FILE:
        raise ValueError(f"larger than {LONGEST_FILE} bytes")
    return data.decode("utf-8")


def _not_toml(path: Path, text: str, error: str) -> str:
    """Return the error for a file that is not TOML, with the line and a hint."""
    position = _POSITION.search(error)
    if position is None:
        return f"{path}: {error}"
    reason = f"{error[: position.start()]}, {position[2]}"
    key, equals, value = text.split("\n")[int(position[1]) - 1].partition("=")
    if equals and key.strip().isprintable() and _BARE.fullmatch(value.strip()):
        is_number = _SETTINGS.get(key.strip().replace("-", "_")) in _NUMBERS
        hint = "expects a number, e.g. 5" if is_number else "put the value in quotes"
        reason = f"{key.strip()}: {hint} ({reason})"
    return f"{path}, line {position[1]}: {reason}"


class _Reader:
    """Converts a TOML document to settings."""

    def __init__(self, path: Path, text: str = "") -> None:
        self._file = ConfigFile(path, text)

    def read(self, document: Mapping[str, Any]) -> ConfigFile:
        for key, value in document.items():
            if key in _IN_TABLE:
                self._table(key, value)
            elif key in {"listener", "handler"} and _is_array_of_tables(value):
                self._array(key, value)
            elif key == "listener" or (key == "handler" and isinstance(value, dict)):
                self._fail(key, value, f"write [[{key}]]")
            else:
                self._setting(key, _SETTINGS.get(key.replace("-", "_")), value, _SETTINGS)
        return self._file

    def _table(self, table: str, content: Any) -> None:
        if not isinstance(content, dict):
            self._fail(table, content, f"expected a table, [{table}]")
        known, front = _IN_TABLE[table], _TLS if table == "tls" else ""
        keys = {setting.removeprefix(front) for setting in known}
        for key, value in content.items():
            name = _SETTINGS.get(key.replace("-", "_"))
            if name not in known:  # also --tls-handshake-timeout, which belongs to [gate]
                name = _SETTINGS.get(front + key.replace("-", "_")) if front else None
            self._setting(f"{table}.{key}", name, value, keys)

    def _array(self, table: str, content: list[dict[str, Any]]) -> None:
        read: Any = _listener if table == "listener" else _handler
        texts: list[HandlerEntry] = []
        for number, entry in enumerate(content, 1):
            try:
                texts.append(read(dict(entry)))
            except SettingError as error:
                self._fail(f"{table} {number}: {error.setting}", error.value, error.reason)
        self._setting(table, "listen" if table == "listener" else "handler", texts, ())

    def _setting(self, key: str, name: str | None, value: Any, known: Any) -> None:
        if name is None:
            table, _, bare = key.rpartition(".")
            if table and (table_name := _right_table(bare, table)):
                self._fail(key, value, f"{bare} belongs {table_name}")
            near = difflib.get_close_matches(key.rpartition(".")[2].replace("-", "_"), known, 1)
            hint = f"; did you mean {near[0].replace('_', '-')}?" if near else ""
            self._fail(key, value, f"unknown setting{hint}")
        if name in self._file.values:
            self._fail(key, value, f"already set by {self._file.keys[name]}")
        self._file.values[name] = value
        self._file.keys[name] = key

    def _fail(self, key: str, value: Any, reason: str) -> NoReturn:
        if key.startswith("handler ") and not key.endswith(" use"):
            value = HIDDEN  # an argument of a handler may be a secret
        elif "handler" in key or "handler" in reason:
            value = shown_handlers(value)
        shown = "" if value is None else f" {shortened(value)}"
        raise ConfigError(f"{self._file.origin(key)}{shown}: {reason}")


def shortened(value: object) -> str:
    """Return *value* in Python's notation, cut off at :data:`LONGEST_VALUE` characters."""
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."


def _right_table(key: str, table: str) -> str:
    """Return the right place of a key that is in the wrong *table*; empty if it is unknown."""
    setting = _SETTINGS.get(key.replace("-", "_"))
    if setting is None:
        return ""
    tables = [name for name, settings in _IN_TABLE.items() if setting in settings]
    return f"in [{tables[0]}]" if tables else f"at the top level, above [{table}]"


def _is_array_of_tables(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)


def _take(entry: dict[str, Any], key: str, kind: type, default: Any = None) -> Any:
    value = entry.pop(key, default)
    if type(value) is not kind and value is not default:
        raise SettingError(key, value, f"expected {_KINDS[kind]}")
    return value


_KINDS = {str: "a string", int: "a whole number", bool: "true or false", list: "a list"}


def _check_no_keys_left(entry: dict[str, Any], known: str) -> None:
    for key, value in entry.items():
        raise SettingError(key, value, f"unknown key; the keys are {known}")


_TLS_MODES = {"starttls": "", "none": "+no-tls", "required": "+require-tls", "implicit": ""}


def _listener(entry: dict[str, Any]) -> str:
    """Return the address of a ``[[listener]]`` in the form of ``--listen-address``."""
    address = _take(entry, "address", str)
    path = _take(entry, "path", str)
    port = _take(entry, "port", int)
    protocol = _take(entry, "protocol", str, "smtp")
    tls = _take(entry, "tls", str, "starttls")
    proxy = _take(entry, "proxy", bool, default=False)
    _check_no_keys_left(entry, "address, path, port, protocol, tls and proxy")
    if (address is None) == (path is None):
        raise SettingError("address", address, "expected either address or path")
    if protocol not in {"smtp", "lmtp"}:
        raise SettingError("protocol", protocol, "expected one of smtp, lmtp")
    if tls not in _TLS_MODES:
        raise SettingError("tls", tls, f"expected one of {', '.join(_TLS_MODES)}")
    if protocol == "lmtp" and tls == "implicit":
        raise SettingError("tls", tls, "LMTP has no port with implicit TLS")
    if path is not None and port is not None:
        raise SettingError("port", port, "a unix socket has no port")
    scheme = "smtps" if tls == "implicit" else protocol
    scheme += _TLS_MODES[tls] + ("+proxy" if proxy else "")
    return f"{scheme}:unix:{path}" if path is not None else f"{scheme}:{_with_port(address, port)}"


def _with_port(address: str, port: int | None) -> str:
    if port is None:
        return address
    return f"[{address}]:{port}" if ":" in address and address[:1] != "[" else f"{address}:{port}"


def _handler(entry: dict[str, Any]) -> HandlerEntry:
    """Return the handler of a ``[[handler]]``: the table, or text if it has no keys of its own."""
    if not isinstance(entry.get("use"), str) or not entry["use"]:
        expected = "expected maildir, relay, ... or module:attr"
        missing = "" if "use" in entry else "the key is missing; "
        raise SettingError("use", entry.get("use"), missing + expected)
    spec = HandlerSpec.of(entry)
    if entry.keys() - {"use", "argument", "arguments"}:
        return entry
    for each in spec.arguments:
        if "," in each and "arguments" in entry:
            raise SettingError("arguments", each, "expected strings without commas")
    return f"{spec.use}:{','.join(spec.arguments)}" if spec.arguments else spec.use
