"""DnsChecks: clients wait for DNS queries about them; a client's queries run concurrently."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from smtpd_fork.errors import describe_error
from smtpd_fork.gate import ClientLine, Refusal
from smtpd_fork.listeners.dnsbl_health_check import DnsblHealthCheck
from smtpd_fork.listeners.pending_clients import PendingClient, PendingClients
from smtpd_fork.peer_address import host_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from smtpd_fork.config import Config
    from smtpd_fork.gate import Ticket
    from smtpd_fork.listeners.accepted_client import AcceptedClient
    from smtpd_fork.listeners.dnsbl import Listing
    from smtpd_fork.listeners.pending_clients import Begin, Refuse
    from smtpd_fork.listeners.resolver import Resolver
    from smtpd_fork.peer_address import Peer

__all__ = ["DnsChecks"]

log = logging.getLogger("smtpd_fork.listeners")

MAX_ZONES_TEXT = 350
"""Characters for the names of zones in a reply line of 512 octets (RFC 5321 4.5.3.1.5)."""


class DnsChecks(PendingClients):
    """Holds clients until the DNS queries about them are complete.

    :param dns: sends the queries
    :param config: ``dnsbl_threshold``, ``rdns``, and ``dns_timeout``, the time for all queries of
        a client
    """

    phase = "dns"

    def __init__(self, dns: Resolver, config: Config, begin: Begin, refuse: Refuse) -> None:
        super().__init__(begin, refuse)
        self._dns = dns
        self._threshold = config.dnsbl_threshold
        self._look_up_names = config.rdns
        self._seconds = config.dns_timeout
        self._check = DnsblHealthCheck(dns)
        self._clients: dict[PendingClient, asyncio.Task[None]] = {}

    def hold(self, client: AcceptedClient, ticket: Ticket) -> None:
        """Hold a client, and own it until it passes or is closed."""
        pending = PendingClient(client.listener, client.sock, client.peer, ticket, self)
        task = asyncio.get_running_loop().create_task(self._check_client(pending))
        self._clients[pending] = task
        task.add_done_callback(partial(self._on_task_done, pending))

    def _remove(self, client: PendingClient) -> None:
        self._clients.pop(client).cancel()

    async def _check_client(self, client: PendingClient) -> None:
        refusal = await self.judge(client.ticket, client.peer)
        del self._clients[client]  # the next step owns it from here on
        if refusal is not None:
            self._refuse(client, refusal)
        else:
            self._begin(client, client.ticket)

    async def judge(self, ticket: Ticket, peer: Peer, *, look_up: bool = True) -> Refusal | None:
        """Query the DNS about a client; return its refusal, or None.

        :param look_up: whether to query its name, if ``rdns`` is on
        """
        host = host_of(peer) or ""
        name = self._name(host) if look_up else _no_name()
        listed, ticket.host_name_dns = await asyncio.gather(self._dns.listed(host), name)
        score = sum(listing.weight for listing in listed)
        if score >= self._threshold:
            return self._refusal(host, score, listed)
        ticket.listed_by = _zones_text(listed) if score > 0 else ""
        return None

    async def _name(self, host: str) -> str | None:
        if self._look_up_names:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._seconds):  # for two queries or more
                    return await self._dns.name(host)
        return None

    def _refusal(self, host: str, score: int, listed: Sequence[Listing]) -> Refusal:
        by = _zones_text(listed)
        return Refusal(
            "dnsbl",
            host,
            score,
            self._threshold - 1,
            code=554,
            status="5.7.1",
            text=f"Access denied, {{key}} is listed by {by}",
            detail=f"listed by {by}",
            origin=", ".join(f"--dnsbl {entry}" for each in listed for entry in each.entries),
        )

    def _on_task_done(self, client: PendingClient, task: asyncio.Task[None]) -> None:
        """Close a client whose task ended early, and log the exception of the task."""
        if self._clients.pop(client, None) is not None:
            client.close()
        if not task.cancelled() and (error := task.exception()) is not None:
            what = "DNS check failed"
            line = ClientLine.of(log, logging.ERROR, client.peer, what, describe_error(error))
            log.error("%s", line, exc_info=error, extra=line.extra)

    @property
    def zones(self) -> Mapping[str, bool]:
        """Maps each blocklist to whether IPv4 clients are looked up in it."""
        return {zone: (zone, False) not in self._dns.disabled for zone in self._dns.zones}

    def stop_zone_checks(self) -> None:
        """Stop the health checks of the blocklists: no more clients arrive."""
        self._check.stop()

    def stop(self, hostname: str) -> int:
        """Answer 421 to all clients, and return their number."""
        self.stop_zone_checks()
        return super().stop(hostname)


def _zones_text(listed: Sequence[Listing]) -> str:
    """Return the zones that list a client, with the codes, as text of limited length."""
    by = ", ".join(sorted(map(str, listed)))
    return f"{by[:MAX_ZONES_TEXT]}..." if len(by) > MAX_ZONES_TEXT else by


async def _no_name() -> None:
    """Return no name, without a query."""
