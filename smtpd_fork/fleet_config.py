"""FleetConfig: the settings of a fleet, a part of :class:`smtpd_fork.Config`."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from smtpd_fork.setting_types import CountOrZero, FilePath, MissingSettingError, Text
from smtpd_fork.units import parse_duration

__all__ = ["FleetConfig"]


class FleetConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of a fleet: several nodes that share limits by Redis or Valkey."""

    fleet: Text | None = None
    """Redis or Valkey server by which nodes share the limits of clients, networks and rates."""
    fleet_secret: FilePath | None = None
    """File with the password for the Redis or Valkey server."""
    fleet_tls_ca: FilePath | None = None
    """File of CA certificates (PEM) to verify the server's certificate; default: the system's."""
    fleet_prefix: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,64}$")] = "smtpd-fork"
    """Prefix of the keys in Redis; nodes with the same prefix are a fleet."""
    fleet_connections: CountOrZero = 0
    """Maximum of concurrent sessions of the fleet; 0 is no limit."""
    fleet_node: Text | None = None
    """Name of this node; default: ``hostname``."""
    fleet_timeout: Annotated[float, Meta(ge=0.01, le=10, extra={"reader": parse_duration})] = 0.2
    """Time limit of a query to the fleet for a new client; then the limits of this node apply. Not
    longer than half of ``fleet_lease``."""
    fleet_lease: Annotated[float, Meta(ge=2, le=60, extra={"reader": parse_duration})] = 6.0
    """Time after which the sessions of a node that does not report are no longer counted."""
    when_fleet_down: Literal["local", "refuse"] = "local"
    """How new clients are handled while the fleet is unreachable: the limits of this node apply,
    or clients get 421."""

    def check_fleet(self) -> None:
        """Check that ``fleet`` is set if another of these settings is.

        :raises SettingError: it is not
        """
        for name in ("fleet_secret", "fleet_tls_ca", "fleet_connections", "fleet_node"):
            if (value := getattr(self, name)) and not self.fleet:
                raise MissingSettingError(name, value, "fleet")
