"""Preconnect: the stages between the admission of a client and its session.

The stages are: receive the PROXY header, query the fleet, query the DNS, delay the greeting. Each
exists only if it is configured, and holds a client until it passes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from smtpd_fork.listeners.dns_checks import DnsChecks
from smtpd_fork.listeners.fleet_checks import FleetChecks
from smtpd_fork.listeners.greet_pause import GreetPause
from smtpd_fork.listeners.proxy import ProxyHeaders

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping

    from smtpd_fork.config import Config
    from smtpd_fork.fleet import Fleet
    from smtpd_fork.gate import Gate, Refusal, Reporter, Ticket, TrustedHosts
    from smtpd_fork.listeners.accepted_client import AcceptedClient
    from smtpd_fork.listeners.pending_clients import Begin, Refuse
    from smtpd_fork.listeners.resolver import Resolver
    from smtpd_fork.peer_address import Peer

__all__ = ["Preconnect"]


class Preconnect:
    """Passes clients with a ticket through the configured stages.

    :param config: ``greet_pause`` and related settings, ``proxy_timeout``, and the DNS settings
    :param gate: evaluates the client behind a proxy
    :param loop: the event loop of the stages
    :param begin: receives a client that has passed, and its ticket; it owns both from then on
    :param refuse: answers a client that is refused, and closes
    :param resolver: queries the DNS about clients; None: no DNS queries
    :param reporter: writes log lines about clients
    :param fleet: is queried about clients; None: no fleet
    """

    def __init__(
        self,
        config: Config,
        gate: Gate,
        loop: asyncio.AbstractEventLoop,
        *,
        begin: Begin,
        refuse: Refuse,
        resolver: Resolver | None,
        reporter: Reporter,
        fleet: Fleet | None = None,
    ) -> None:
        self._begin = begin
        self._gate = gate
        self._proxies = ProxyHeaders(
            *(config.proxy_timeout, loop, self._on_identified, refuse), gate=gate, reporter=reporter
        )
        self._fleet_checks: FleetChecks | None = None
        if fleet is not None:
            self._fleet_checks = FleetChecks(fleet, gate, self._on_fleet_checked, refuse)
        self._dns_checks: DnsChecks | None = None
        if resolver is not None:
            self._dns_checks = DnsChecks(resolver, config, self._on_dns_checked, refuse)
        self._pause: GreetPause | None = None
        if config.greet_pause:
            self._pause = GreetPause(config, loop, self._begin, refuse, gate=gate)
        later = (self._fleet_checks, self._dns_checks, self._pause)
        self._is_direct = not any(stage is not None for stage in later)
        self._stages = [stage for stage in (self._proxies, *later) if stage is not None]

    def __len__(self) -> int:
        return sum(len(stage) for stage in self._stages)

    def trust(self, hosts: TrustedHosts) -> None:
        """Set the hosts behind a proxy that may name their clients by XCLIENT."""
        self._proxies.trusted = hosts

    def enter(self, client: AcceptedClient, ticket: Ticket) -> None:
        """Receive a client, and own it until it passes or is closed."""
        if client.listener.proxy:
            self._proxies.hold(client, ticket)
        elif self._is_direct:  # the most frequent case
            self._begin(client, ticket)
        else:
            self._on_identified(client, ticket)

    def _on_identified(self, client: AcceptedClient, ticket: Ticket) -> None:
        if self._fleet_checks is not None:
            self._fleet_checks.hold(client, ticket)
        else:
            self._on_fleet_checked(client, ticket)

    def _on_fleet_checked(self, client: AcceptedClient, ticket: Ticket) -> None:
        if self._dns_checks is not None and self._needs_dns_checks(ticket):
            self._dns_checks.hold(client, ticket)
        else:
            self._on_dns_checked(client, ticket)

    def _on_dns_checked(self, client: AcceptedClient, ticket: Ticket) -> None:
        if self._pause is not None and self._pause.concerns(client, ticket):
            self._pause.hold(client, ticket)
        else:
            self._begin(client, ticket)

    async def judge(self, ticket: Ticket, peer: Peer, *, look_up: bool) -> Refusal | None:
        """Replace the client of a session by *peer*, which XCLIENT names, and evaluate it.

        :param look_up: whether to query its name, if that is configured
        :returns: the refusal of the new client, or None
        """
        ticket.host_name_dns, ticket.listed_by = None, ""
        refusal = self._gate.identify(ticket, peer)
        if refusal is None and self._fleet_checks is not None:
            refusal = await self._fleet_checks.judge(ticket)
        if refusal is None and self._dns_checks is not None and self._needs_dns_checks(ticket):
            refusal = await self._dns_checks.judge(ticket, peer, look_up=look_up)
        return refusal

    def _needs_dns_checks(self, ticket: Ticket) -> bool:
        """Whether DNS queries are needed: the client has an IP address and is not exempt."""
        return not ticket.client.exempt and ticket.client.number is not None

    @property
    def zones(self) -> Mapping[str, bool]:
        """Maps each blocklist to whether clients are looked up in it."""
        return {} if self._dns_checks is None else self._dns_checks.zones

    def stop_zone_checks(self) -> None:
        """Stop the health checks of the blocklists: no more clients arrive."""
        if self._dns_checks is not None:
            self._dns_checks.stop_zone_checks()

    def stop(self, hostname: str) -> int:
        """Answer 421 to all clients of all stages, and return their number."""
        return sum(stage.stop(hostname) for stage in self._stages)
