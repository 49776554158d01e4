"""TlsConfig: the settings of TLS, a part of :class:`smtpd_fork.Config`."""

from __future__ import annotations

from typing import Literal

from smtpd_fork.fleet_config import FleetConfig
from smtpd_fork.setting_types import MissingSettingError, SettingError, Text

__all__ = ["TlsConfig"]


class TlsConfig(FleetConfig, frozen=True, kw_only=True):
    """The settings of certificates and TLS.

    It is derived from FleetConfig as a msgspec Struct cannot have several base classes.
    """

    tls_cert: tuple[Text, ...] = ()
    """PEM files, each with a certificate chain. If set, STARTTLS is offered. A client gets the
    certificate for the name that it sends (SNI), or else the first one."""
    tls_key: tuple[Text, ...] = ()
    """PEM files with the private keys of ``tls_cert``, in order; default: the same files."""
    tls_min_version: Literal["1.2", "1.3"] = "1.2"
    """Minimum version of TLS."""
    tls_client_ca: Text | None = None
    """PEM file of CA certificates. If set, clients are asked for a certificate."""
    tls_client_verify: Literal["optional", "require"] = "optional"
    """Whether clients need a certificate."""
    require_starttls: bool = False
    """Refuse mail over a plaintext connection (RFC 3207 4)."""

    def check_tls(self) -> None:
        """Check the settings of TLS against each other.

        :raises SettingError: a setting lacks another one that it requires
        """
        certs, keys = self.tls_cert, self.tls_key
        if keys and not certs:
            raise MissingSettingError("tls_key", keys[0], "tls_cert")
        if keys and len(keys) != len(certs):
            reason = (
                f"{len(keys)} given, and tls_cert has {len(certs)} ({', '.join(certs)}): "
                "one for each, in order, or none where the keys are in the same files"
            )
            raise SettingError("tls_key", ", ".join(keys), reason)
        if self.tls_client_ca and not certs:
            raise MissingSettingError("tls_client_ca", self.tls_client_ca, "tls_cert")
        if self.tls_client_verify == "require" and not self.tls_client_ca:
            raise MissingSettingError("tls_client_verify", self.tls_client_verify, "tls_client_ca")
