"""EffectiveSettings: the settings in force, with the files and sockets that they name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from smtpd_fork.errors import error_origin
from smtpd_fork.gate import TrustedHosts, limits_of, networks_of
from smtpd_fork.listeners import adopt, open_listeners, reopen_listeners, resolver_of

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable, Sequence

    from smtpd_fork.config import Config
    from smtpd_fork.gate import Limits
    from smtpd_fork.gate.rules import NetworkList
    from smtpd_fork.handlers import Chain
    from smtpd_fork.listeners import Listener
    from smtpd_fork.listeners.resolver import Resolver

__all__ = ["EffectiveSettings"]

_PRECONNECT_SETTINGS = (
    *("greet_pause", "greet_pause_deny", "stress_timeout", "proxy_timeout"),
    *("dnsbl", "dnsbl_threshold", "rdns", "dns_timeout", "dns_server"),
)
"""The settings of the stages before a session (see :mod:`smtpd_fork.listeners.preconnect`)."""


@dataclass(frozen=True, slots=True)
class EffectiveSettings:
    """The settings of a server and the objects made from them, until the next reload.

    :ivar config: the settings
    :ivar chain: the handlers
    :ivar limits: the limits of the gate
    :ivar proxy_trust: hosts that may send PROXY headers
    :ivar xclient_trust: hosts that may send XCLIENT
    :ivar xforward_trust: hosts that may send XFORWARD
    :ivar probe_from: networks of health checks
    :ivar resolver: queries the DNS about clients, or None
    :ivar listeners: the listening sockets
    """

    config: Config
    chain: Chain
    limits: Limits
    proxy_trust: TrustedHosts
    xclient_trust: TrustedHosts
    xforward_trust: TrustedHosts
    probe_from: NetworkList | None
    resolver: Resolver | None
    listeners: tuple[Listener, ...] = ()

    @classmethod
    def read(
        cls,
        config: Config,
        chain: Chain,
        *,
        limits: Limits | None = None,
        listeners: Iterable[Listener] = (),
    ) -> Self:
        """Read the files that *config* names, without binding sockets.

        :param limits: the limits of the gate, if they are known already
        :raises SmtpdForkError: a file cannot be read, or a value is invalid
        """
        return cls(
            config,
            chain,
            limits or limits_of(config),
            TrustedHosts.of("proxy_trust", config.proxy_trust, unix=True),
            TrustedHosts.of("xclient_trust", config.xclient_trust),
            TrustedHosts.of("xforward_trust", config.xforward_trust),
            networks_of("probe_from", config.probe_from),
            resolver_of(config),
            tuple(listeners),
        )

    @property
    def trusted(self) -> dict[str, TrustedHosts]:
        """The hosts that may send XCLIENT or XFORWARD, by command."""
        hosts = {"XCLIENT": self.xclient_trust, "XFORWARD": self.xforward_trust}
        return {name: each for name, each in hosts.items() if each}

    def bind(self, sockets: Sequence[socket.socket] | None = None) -> Self:
        """Listen on *sockets*, or on the addresses of the settings.

        :raises SmtpdForkError: as :func:`smtpd_fork.listeners.open_listeners`
        """
        config = self.config
        if sockets is not None:
            listeners = [adopt(sock, backlog=config.backlog) for sock in sockets]
        else:
            listeners = open_listeners(config)
        return replace(self, listeners=tuple(listeners))

    def prepare_reload(self, config: Config, chain: Chain) -> Self:
        """Read the files and open the sockets of *config*, to replace these settings; blocks.

        Listeners that *config* names as well are kept. Inherited listeners are always kept.

        :raises SmtpdForkError: a file cannot be read, or an address cannot be bound; then no new
            socket stays open
        """
        settings = type(self).read(config, chain, listeners=self.listeners)
        with error_origin("handler"):
            chain.prepare()
        if any(listener.inherited for listener in self.listeners):
            return settings
        # Last, as a later error would leave the new sockets open.
        with error_origin("listen", "port"):
            return replace(settings, listeners=tuple(reopen_listeners(self.listeners, config)))

    def has_same_preconnect(self, other: Self) -> bool:
        """Whether *other* has the same settings for the stages before a session."""
        return all(
            getattr(self.config, name) == getattr(other.config, name)
            for name in _PRECONNECT_SETTINGS
        )
