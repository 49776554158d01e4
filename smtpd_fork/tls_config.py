"""TlsConfig: the settings of TLS, a part of :class:`smtpd_fork.Config`."""

from __future__ import annotations

from typing import Literal

from smtpd_fork.fleet_config import FleetConfig
from smtpd_fork.setting_types import MissingSettingError, SettingError, Text

__all__ = ["TlsConfig"]


class TlsConfig(FleetConfig, frozen=True, kw_only=True):
    """The certificates of this server, and those of clients; a Struct has one base alone."""

    tls_cert: tuple[Text, ...] = ()
    """PEM files, each with a certificate chain; with one, STARTTLS is offered. A client gets the
    certificate for the name that it asks for, else the first."""
    tls_key: tuple[Text, ...] = ()
    """PEM files of their keys, in the same order; default: in the same files."""
    tls_min_version: Literal["1.2", "1.3"] = "1.2"
    """Oldest version of TLS that is accepted."""
    tls_client_ca: Text | None = None
    """PEM file of CA certificates; with it, clients are asked for a certificate."""
    tls_client_verify: Literal["optional", "require"] = "optional"
    """Whether clients without a certificate are accepted."""
    require_starttls: bool = False
    """Refuse mail over a plaintext connection (RFC 3207 4)."""

    def check_tls(self) -> None:
        """See that no setting lacks another one.

        :raises SettingError: one does
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
