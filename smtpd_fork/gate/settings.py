"""Settings: from what people write to the gate's limits, with a fault that names what is wrong."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, TypeVar

from smtpd_fork.config import SettingError
from smtpd_fork.gate.limits import Limits
from smtpd_fork.gate.networks import NetworkTable
from smtpd_fork.gate.rules import AccessList, NetworkLimit, Rate
from smtpd_fork.gate.rules.access import read_networks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from smtpd_fork.config import Config
    from smtpd_fork.gate.networks import Network

__all__ = ["GATE_SETTINGS", "limits_of", "networks_of"]

GATE_SETTINGS = frozenset({
    *("limit_connections", "max_from_ip", "ipv6_prefix", "max_from_net", "rate", "rate_net"),
    *("fair_share", "allow", "deny", "exempt", "reserve", "refuse_first", "refuse_every"),
    *("max_loop_lag", "tls_failure_rate"),
})  # fmt: skip
"""The settings that :func:`limits_of` reads."""

T = TypeVar("T")


def limits_of(config: Config) -> Limits:
    """Return the limits that *config* describes; files are read.

    :raises SettingError: a network, a rate or a line of a file cannot be read; it names setting,
        value, file and line
    """
    networks = [value for value in config.max_from_net if value != "0"]
    rates = _each("rate", config.rate, Rate.parse)
    rates += _each("rate_net", config.rate_net, Rate.parse_of_network)
    failures = [value for value in (config.tls_failure_rate,) if value != "0"]
    return Limits(
        limit_connections=config.limit_connections,
        max_from_ip=config.max_from_ip,
        ipv6_prefix=config.ipv6_prefix,
        max_from_net=tuple(_each("max_from_net", networks, NetworkLimit.parse)),
        rates=tuple(rates),
        tls_failure_rate=next(iter(_each("tls_failure_rate", failures, Rate.parse)), None),
        access=_access(config) if config.allow or config.deny else None,
        exempt=networks_of("exempt", config.exempt),
        reserve=config.reserve,
        fair_share=config.fair_share,
        refuse_first=config.refuse_first,
        refuse_every=config.refuse_every,
        max_loop_lag=config.max_loop_lag,
    )


def _each(setting: str, values: Iterable[str], read: Callable[[str], T]) -> list[T]:
    result = []
    for value in values:
        try:
            result.append(read(value))
        except ValueError as error:
            raise SettingError(setting, value, str(error)) from None
    return result


def networks_of(setting: str, values: Iterable[str]) -> NetworkTable[bool] | None:
    """Return the networks of a setting; None if there are none.

    :raises SettingError: one cannot be read
    """
    networks = chain.from_iterable(_each(setting, values, _networks))
    return NetworkTable((network, True) for network, _, _ in networks) if values else None


def _access(config: Config) -> AccessList:
    return AccessList(
        chain.from_iterable(_each("allow", config.allow, _networks)),
        chain.from_iterable(_each("deny", config.deny, _networks)),
    )


def _networks(value: str) -> list[tuple[Network, str, str]]:
    try:
        return list(read_networks([value]))
    except OSError as error:
        raise ValueError(f"cannot read the file: {error.strerror}") from None
