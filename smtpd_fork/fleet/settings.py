"""Create the fleet that the settings describe."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING

from smtpd_fork.errors import MissingLibraryError
from smtpd_fork.fleet.address import FleetAddress
from smtpd_fork.fleet.fleet import Fleet
from smtpd_fork.fleet.sync import Keys
from smtpd_fork.setting_types import SettingError

if TYPE_CHECKING:
    from smtpd_fork.config import Config
    from smtpd_fork.fleet.redis_link import RedisLink
    from smtpd_fork.gate import Gate

__all__ = ["fleet_of", "link_of"]

LONGEST_SECRET = 4096
"""Maximum size of a file with a password, in bytes."""


def fleet_of(config: Config, gate: Gate) -> Fleet | None:
    """Return the fleet that *gate* has joined, or else the fleet of *config*; None without one.

    :raises SettingError: the address, the password or the CA certificates cannot be read
    :raises MissingLibraryError: redis-py is not installed
    """
    share = gate.slots.share
    if share is not None and isinstance(share.owner, Fleet):
        return share.owner
    if config.fleet is None:
        return None
    return Fleet(
        gate,
        link_of(config),
        node=config.fleet_node or config.hostname,
        connections=config.fleet_connections,
        timeout=config.fleet_timeout,
        lease=config.fleet_lease,
        when_down=config.when_fleet_down,
    )


def link_of(config: Config) -> RedisLink:
    """Return the link to the fleet of *config*; see :func:`fleet_of`."""
    try:
        from smtpd_fork.fleet.redis_link import RedisLink  # noqa: PLC0415 - of an extra
    except ImportError:
        raise MissingLibraryError("fleet", ["redis"], "fleet") from None
    _check_ca_file(config.fleet_tls_ca)
    return RedisLink(
        FleetAddress.parse(config.fleet or ""),
        Keys(config.fleet_prefix),
        password=_secret(config.fleet_secret),
        ca_file=config.fleet_tls_ca,
    )


def _check_ca_file(name: str | None) -> None:
    if name is None:
        return
    try:
        ssl.create_default_context(cafile=name)
    except ssl.SSLError:
        raise SettingError("fleet_tls_ca", name, "the file contains no PEM certificate") from None
    except OSError as error:
        reason = f"cannot read the file: {error.strerror}"
        raise SettingError("fleet_tls_ca", name, reason) from None


def _secret(name: str | None) -> str | None:
    if name is None:
        return None
    try:
        with Path(name).open(encoding="utf-8") as file:
            text = file.read(LONGEST_SECRET + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise SettingError("fleet_secret", name, f"cannot read the file: {reason}") from None
    password = text.strip("\r\n")
    if not password or len(text) > LONGEST_SECRET or "\n" in password:
        raise SettingError("fleet_secret", name, "expected a file with one line, the password")
    return password
