"""FleetConfig: the settings of a fleet, a part of :class:`smtpd_fork.Config`."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from smtpd_fork.setting_types import CountOrZero, FilePath, MissingSettingError, Text
from smtpd_fork.units import parse_duration

__all__ = ["FleetConfig"]


class FleetConfig(msgspec.Struct, frozen=True, kw_only=True):
    """By what, and how, nodes share limits."""

    fleet: Text | None = None
    """Redis or Valkey by which nodes share the limits of clients, networks and rates."""
    fleet_secret: FilePath | None = None
    """File with the password for it."""
    fleet_tls_ca: FilePath | None = None
    """CA certificates (PEM) that its certificate is verified with; default: the system's."""
    fleet_prefix: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,64}$")] = "smtpd-fork"
    """Front of the keys; nodes with the same one are a fleet."""
    fleet_connections: CountOrZero = 0
    """Sessions of the fleet at once; 0 is no limit."""
    fleet_node: Text | None = None
    """Name of this node; default: ``hostname``."""
    fleet_timeout: Annotated[float, Meta(ge=0.01, le=10, extra={"reader": parse_duration})] = 0.2
    """Time that a client waits for the fleet at most; then the limits of this node apply. Half of
    ``fleet_lease`` is the longest."""
    fleet_lease: Annotated[float, Meta(ge=2, le=60, extra={"reader": parse_duration})] = 6.0
    """Time after which the sessions of a silent node are not counted any more."""
    when_fleet_down: Literal["local", "refuse"] = "local"
    """What happens to new clients while the fleet is out of reach: the limits of this node apply,
    or they get 421."""

    def check_fleet(self) -> None:
        """See that no setting lacks another one.

        :raises SettingError: one does
        """
        for name in ("fleet_secret", "fleet_tls_ca", "fleet_connections", "fleet_node"):
            if (value := getattr(self, name)) and not self.fleet:
                raise MissingSettingError(name, value, "fleet")
