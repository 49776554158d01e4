"""Convert the text of settings to the values that a gate uses; errors name the wrong part."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

from smtpd_fork.config import SettingError
from smtpd_fork.gate.networks import NetworkTable
from smtpd_fork.gate.rules import NetworkLimit, Rate
from smtpd_fork.gate.rules.access import read_networks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from smtpd_fork.gate.rules import NetworkList
    from smtpd_fork.gate.rules.access import ListEntry

__all__ = ["READERS", "is_read", "networks_of"]

OFF = "0"
"""The value that means no limit."""

T = TypeVar("T")


def networks_of(setting: str, values: Iterable[str]) -> NetworkList | None:
    """Return the networks of a setting, including those in files that it names; None if empty.

    :raises SettingError: a network, or a line of a file, cannot be read; the text names setting,
        value, file and line
    """
    entries = chain.from_iterable(_read_all(setting, values, _networks))
    return NetworkTable((entry.network, entry) for entry in entries) if values else None


def _numbers(read: Callable[[str], T]) -> Callable[[str, Iterable[str]], tuple[T, ...]]:
    return lambda setting, values: tuple(_read_all(setting, (v for v in values if v != OFF), read))


def _one_rate(setting: str, value: str) -> Rate | None:
    return next(iter(_numbers(Rate.parse)(setting, [value])), None)


READERS: dict[str, Callable[[str, Any], Any]] = {
    "max_from_net": _numbers(NetworkLimit.parse),
    "rate": _numbers(Rate.parse),
    "rate_net": _numbers(Rate.parse_of_network),
    "tls_failure_rate": _one_rate,
    **dict.fromkeys(("allow", "deny", "exempt"), networks_of),
}
"""For each setting of a gate that is one or several texts, the function that converts it."""


def is_read(value: Any) -> bool:
    """Return whether *value* was converted by :data:`READERS` already."""
    if isinstance(value, tuple):
        return bool(value) and all(isinstance(each, (Rate, NetworkLimit)) for each in value)
    return value is None or isinstance(value, (Rate, NetworkTable))


def _read_all(setting: str, values: Iterable[str], read: Callable[[str], T]) -> list[T]:
    result = []
    for value in values:
        try:
            result.append(read(value))
        except ValueError as error:
            raise SettingError(setting, value, str(error)) from None
    return result


def _networks(value: str) -> list[ListEntry]:
    try:
        return list(read_networks([value]))
    except OSError as error:
        raise ValueError(f"cannot read the file: {error.strerror}") from None
