"""Parameters: the keys of a handler, from the signature of its class or function."""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import msgspec
from msgspec import Meta

from smtpd_fork import setting_types
from smtpd_fork.errors import HandlerError
from smtpd_fork.sanitizer import shown_value
from smtpd_fork.setting_errors import reason_of
from smtpd_fork.setting_types import SettingError
from smtpd_fork.units import parse_boolean

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Parameters"]

_UNKNOWN: Any = object()
"""The type of a parameter whose annotation cannot be evaluated."""


class Parameters:
    """The parameters of a class or function that can be given as keys.

    :param made_by: the class or function
    :param strict: whether parameters whose type is not that of a setting are left out
    """

    def __init__(self, made_by: Callable[..., Any], *, strict: bool) -> None:
        self._made_by = made_by
        self._hints: dict[str, Any] = {}
        self._takes_any = False
        for name, parameter in _signature(made_by).items():
            if parameter.kind is parameter.VAR_KEYWORD:
                self._takes_any = not strict
            elif parameter.kind in {parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY}:
                hint = _hint(made_by, parameter)
                if not strict or _is_setting(hint):
                    self._hints[name.replace("_", "-")] = hint

    @property
    def keys(self) -> list[str]:
        """The keys; the first may be given without its name."""
        return list(self._hints)

    def has(self, key: str) -> bool:
        """Return whether there is such a key."""
        return key in self._hints or self._takes_any

    def values(self, keys: Mapping[str, Any], directory: Path | None) -> dict[str, Any]:
        """Return the keyword arguments for *keys*.

        :param directory: the directory for relative paths; None: the current directory
        :raises SettingError: a key is unknown, or its value cannot be read
        """
        values = {}
        for key, value in keys.items():
            if not self.has(key):
                near = get_close_matches(key, self._hints, 1)
                known = ", ".join(self._hints) or "none"
                hint = f"did you mean {near[0]}?" if near else f"the keys are {known}"
                raise SettingError(key, shown_value(key, value), f"unknown key; {hint}")
            hint = self._hints.get(key, _UNKNOWN)
            values[key.replace("-", "_")] = _value(key, value, hint, directory)
        return values

    def check_complete(self, keys: Iterable[str]) -> None:
        """Check that every parameter without a default has a value.

        :raises HandlerError: a value is missing
        """
        given = set(keys)
        for name, parameter in _signature(self._made_by).items():
            key = name.replace("_", "-")
            if parameter.default is parameter.empty and key in self._hints and key not in given:
                raise HandlerError(f"needs {key}")


def _signature(made_by: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(made_by).parameters
    except (TypeError, ValueError):  # perhaps a C function
        return {}


def _hint(made_by: Callable[..., Any], parameter: inspect.Parameter) -> Any:
    """Return the type of a parameter; a type that only type checkers import is unknown."""
    hint = parameter.annotation
    if hint is parameter.empty:
        return _UNKNOWN
    if not isinstance(hint, str):
        return hint
    module = sys.modules.get(getattr(made_by, "__module__", ""))
    names = {**vars(setting_types), **(vars(module) if module else {})}
    try:
        return eval(hint, names)  # noqa: S307 - the text is from the module itself
    except Exception:  # noqa: BLE001 - an annotation may raise anything
        return _UNKNOWN


def _parts(hint: Any) -> Sequence[Any]:
    """Return the types of a union, or the type itself."""
    if get_origin(hint) in {Union, types.UnionType}:
        return [each for each in get_args(hint) if each is not type(None)]
    return [hint]


def _bare(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _is_setting(hint: Any) -> bool:
    """Return whether text or TOML can represent a value of a type."""
    simple = {str, int, float, bool, dict}
    for part in map(_bare, _parts(hint)):
        origin = get_origin(part)
        if part in simple or origin in {list, tuple, Sequence, Literal, dict, Mapping}:
            return True
    return False


def _is_list(hint: Any) -> bool:
    return any(get_origin(_bare(part)) in {list, tuple, Sequence} for part in _parts(hint))


def _extras(hint: Any) -> dict[str, Any]:
    """Return the ``extra`` of the Meta objects in a type, such as the function that parses text."""
    extras: dict[str, Any] = {}
    for part in _parts(hint):
        if get_origin(part) is Annotated:
            for meta in get_args(part)[1:]:
                extras |= (meta.extra or {}) if isinstance(meta, Meta) else {}
        if _is_list(part):
            for each in get_args(_bare(part)):
                extras |= _extras(each)
    return extras


def _value(key: str, value: Any, hint: Any, directory: Path | None) -> Any:
    """Return *value* converted to the type of its parameter.

    :raises SettingError: it cannot be read
    """
    if hint is _UNKNOWN:
        return value
    is_text = isinstance(value, str)
    if _is_list(hint) and isinstance(value, str):
        value = [each.strip() for each in value.split(",")]
    extras = _extras(hint)
    try:
        if isinstance(value, list):
            value = [_read(each, extras, directory) for each in value]
        else:
            value = _read(value, extras, directory)
        if isinstance(value, str) and bool in _parts(hint) and int not in _parts(hint):
            with suppress(ValueError):
                value = parse_boolean(value)
    except ValueError as error:
        raise SettingError(key, value, str(error)) from None
    try:
        return msgspec.convert(value, _convertible(hint), strict=not is_text)
    except msgspec.ValidationError as error:
        raise SettingError(key, value, reason_of(str(error), value, hint)) from None
    except TypeError:  # msgspec does not support this type
        return value


def _convertible(hint: Any) -> Any:
    """Return a type without the parts of a union that text cannot represent (``PathLike``)."""
    parts = [part for part in _parts(hint) if _is_setting(part)]
    if len(parts) == len(_parts(hint)) or not parts:
        return hint
    return Union[(*parts, type(None))]


def _read(value: Any, extras: Mapping[str, Any], directory: Path | None) -> Any:
    if not isinstance(value, str):
        return value
    if "reader" in extras:
        return extras["reader"](value)
    if directory is not None and (_is_path(value, extras) or value.startswith("unix:")):
        return _resolved(value, directory)
    return value


def _is_path(value: str, extras: Mapping[str, Any]) -> bool:
    """Return whether a value is a path; for some types this depends on the value."""
    path = extras.get("path", False)
    return bool(path(value) if callable(path) else path)


def _resolved(path: str, directory: Path) -> str:
    """Return a path, also one after ``unix:``, as an absolute path in *directory*."""
    front = "unix:" if path.startswith("unix:") else ""
    bare = path.removeprefix(front)
    if bare.startswith("~") or (not front and ":" in bare):
        return path
    return f"{front}{directory / bare}"
