"""ReloadPlan: all that a reload needs, worked out before anything is changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from smtpd_fork.errors import SmtpdForkError
from smtpd_fork.gate import limits_of, networks_of
from smtpd_fork.listeners import dns_checks_of, reopen_listeners

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from smtpd_fork.config import Config
    from smtpd_fork.gate import Limits
    from smtpd_fork.gate.networks import NetworkTable
    from smtpd_fork.handlers import Chain
    from smtpd_fork.listeners import Listener
    from smtpd_fork.listeners.dns_checks import DnsChecks
    from smtpd_fork.server.tls import Rotation

__all__ = ["ReloadPlan", "same_preconnect"]

_PRECONNECT_SETTINGS = (
    *("greet_pause", "proxy_timeout", "dnsbl", "dnsbl_threshold"),
    *("rdns", "dns_timeout", "dns_server"),
)
"""The settings of what clients go through before they have a session."""


def same_preconnect(one: Config, other: Config) -> bool:
    """Whether clients go through the same before they have a session."""
    return all(getattr(one, name) == getattr(other, name) for name in _PRECONNECT_SETTINGS)


@dataclass(frozen=True, slots=True)
class ReloadPlan:
    """What holds after a reload.

    :ivar config: the settings
    :ivar chain: the handlers; ready
    :ivar limits: of the gate
    :ivar proxy_trust: who may send PROXY headers
    :ivar probe_from: where probes come from
    :ivar dns_checks: makes what asks the DNS about clients, or None
    :ivar rotation: the certificates, or None
    :ivar listeners: what to listen on
    :ivar opened: those of them that were not there before
    """

    config: Config
    chain: Chain
    limits: Limits
    proxy_trust: NetworkTable[bool] | None
    probe_from: NetworkTable[bool] | None
    dns_checks: Callable[..., DnsChecks] | None
    rotation: Rotation | None
    listeners: Sequence[Listener]
    opened: Sequence[Listener]

    @classmethod
    def make(
        cls,
        config: Config,
        chain: Chain,
        listeners: Sequence[Listener],
        rotation: Rotation | None,
    ) -> ReloadPlan:
        """Read the files and open the sockets that *config* names; blocks.

        :param listeners: those that are there
        :param rotation: the certificates that the settings name
        :raises SmtpdForkError: something cannot be had; nothing is left behind
        """
        limits, trust = limits_of(config), networks_of("proxy_trust", config.proxy_trust)
        probes = networks_of("probe_from", config.probe_from)
        dns_checks = dns_checks_of(config)
        chain.prepare()
        # Last, as they are what is left behind if anything fails.
        every = list(listeners)
        opened: list[Listener] = []
        if not any(listener.inherited for listener in listeners):
            try:
                every, opened = reopen_listeners(
                    listeners,
                    config.listen,
                    config.port,
                    backlog=config.backlog,
                    socket_mode=config.socket_mode,
                )
            except SmtpdForkError as error:
                error.settings = error.settings or ("listen", "port")
                raise
        return cls(config, chain, limits, trust, probes, dns_checks, rotation, every, opened)

    def give_up(self) -> None:
        """Close what was opened for it."""
        for listener in self.opened:
            listener.close()
