"""Preconnect: the stages between a ticket and a session.

A proxy sends its PROXY header, the fleet and the DNS are asked about the client, and the client
waits for the greeting. Each stage is there only if it is configured, and holds a client until it
passes.
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
    """Takes clients with a ticket as far as their session.

    :param config: ``greet_pause`` and what belongs to it, ``proxy_timeout``, and how the DNS is
        asked
    :param gate: judges the client behind a proxy
    :param loop: in which clients are held
    :param begin: takes a client that has passed, and its ticket; it owns both from then on
    :param refuse: answers a client that has not passed, and closes
    :param resolver: asks the DNS about clients; None: nothing does
    :param reporter: writes lines about clients
    :param fleet: is asked about clients; None: nothing is
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
            *(config.proxy_timeout, loop, self._identified, refuse), gate=gate, reporter=reporter
        )
        self._fleet_checks: FleetChecks | None = None
        if fleet is not None:
            self._fleet_checks = FleetChecks(fleet, gate, self._counted, refuse)
        self._dns_checks: DnsChecks | None = None
        if resolver is not None:
            self._dns_checks = DnsChecks(resolver, config, self._checked, refuse)
        self._pause: GreetPause | None = None
        if config.greet_pause:
            self._pause = GreetPause(config, loop, self._begin, refuse, gate=gate)
        later = (self._fleet_checks, self._dns_checks, self._pause)
        self._is_direct = not any(stage is not None for stage in later)
        self._stages = [stage for stage in (self._proxies, *later) if stage is not None]

    def __len__(self) -> int:
        return sum(len(stage) for stage in self._stages)

    def trust(self, hosts: TrustedHosts) -> None:
        """Have hosts behind a proxy name their clients by XCLIENT."""
        self._proxies.trusted = hosts

    def enter(self, client: AcceptedClient, ticket: Ticket) -> None:
        """Take a client, which is no longer the caller's."""
        if client.listener.proxy:
            self._proxies.hold(client, ticket)
        elif self._is_direct:  # as it is mostly
            self._begin(client, ticket)
        else:
            self._identified(client, ticket)

    def _identified(self, client: AcceptedClient, ticket: Ticket) -> None:
        if self._fleet_checks is not None:
            self._fleet_checks.hold(client, ticket)
        else:
            self._counted(client, ticket)

    def _counted(self, client: AcceptedClient, ticket: Ticket) -> None:
        if self._dns_checks is not None and self._is_asked_about(ticket):
            self._dns_checks.hold(client, ticket)
        else:
            self._checked(client, ticket)

    def _checked(self, client: AcceptedClient, ticket: Ticket) -> None:
        if self._pause is not None and self._pause.concerns(client, ticket):
            self._pause.hold(client, ticket)
        else:
            self._begin(client, ticket)

    async def judge(self, ticket: Ticket, peer: Peer, *, look_up: bool) -> Refusal | None:
        """Have *peer*, which XCLIENT names, take the place of the client of a session.

        :param look_up: whether its name is asked for, if that is configured
        :returns: why it may not
        """
        ticket.host_name_dns, ticket.listed_by = None, ""
        refusal = self._gate.identify(ticket, peer)
        if refusal is None and self._fleet_checks is not None:
            refusal = await self._fleet_checks.judge(ticket)
        if refusal is None and self._dns_checks is not None and self._is_asked_about(ticket):
            refusal = await self._dns_checks.judge(ticket, peer, look_up=look_up)
        return refusal

    def _is_asked_about(self, ticket: Ticket) -> bool:
        """Whether the DNS knows anything of a client that matters."""
        return not ticket.client.exempt and ticket.client.number is not None

    @property
    def zones(self) -> Mapping[str, bool]:
        """The blocklists, and whether clients are looked up in them."""
        return {} if self._dns_checks is None else self._dns_checks.zones

    def retire(self) -> None:
        """Get no more clients: others take them from now on."""
        if self._dns_checks is not None:
            self._dns_checks.retire()

    def stop(self, hostname: str) -> int:
        """Answer 421 to all who are held; return how many there were."""
        return sum(stage.stop(hostname) for stage in self._stages)
