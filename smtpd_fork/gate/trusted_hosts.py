"""TrustedHosts: the hosts that may name their clients by PROXY, XCLIENT or XFORWARD."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from smtpd_fork.gate.networks import number_of
from smtpd_fork.gate.settings import networks_of
from smtpd_fork.peer_address import host_of

if TYPE_CHECKING:
    from collections.abc import Collection

    from smtpd_fork.gate.rules import NetworkList
    from smtpd_fork.peer_address import Peer

__all__ = ["TrustedHosts"]

UNIX = "unix"
"""Stands for the clients of unix sockets, which have no address."""


class TrustedHosts:
    """The trusted networks, and whether clients of unix sockets are trusted.

    :ivar networks: including those read from files; None: no network is trusted
    """

    def __init__(self, networks: NetworkList | None, *, unix: bool) -> None:
        self.networks = networks
        self._unix = unix

    @classmethod
    def of(cls, setting: str, values: Collection[str], *, unix: bool = False) -> Self:
        """Return the trusted hosts of a setting.

        :param unix: whether the clients of unix sockets are trusted in any case
        :raises SettingError: as :func:`networks_of`
        """
        networks = [value for value in values if value != UNIX]
        return cls(networks_of(setting, networks), unix=unix or UNIX in values)

    def __bool__(self) -> bool:
        """Return whether any host is trusted."""
        return self._unix or self.networks is not None

    def __contains__(self, peer: Peer) -> bool:
        """Return whether *peer* is trusted."""
        if not self:
            return False
        host = host_of(peer)
        if host is None:
            return self._unix
        return self.networks is not None and self.networks.find(number_of(host)) is not None
