"""DnsChecks: clients wait while the DNS is asked about them, all questions of a client at once."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from smtpd_fork.gate import Refusal
from smtpd_fork.gate.verdict import shutdown_reply
from smtpd_fork.listeners.dnsbl import Listing, read_entries
from smtpd_fork.listeners.dnsbl_check import DnsblCheck
from smtpd_fork.listeners.refusals import refuse
from smtpd_fork.listeners.resolver import Resolver, parse_nameserver
from smtpd_fork.net import source_key

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping, Sequence

    from smtpd_fork.config import Config
    from smtpd_fork.gate import Ticket
    from smtpd_fork.listeners.listener import Listener
    from smtpd_fork.listeners.pending_clients import Refuse, Welcome
    from smtpd_fork.net import SocketAddress

__all__ = ["DnsChecks", "dns_checks_of"]

log = logging.getLogger("smtpd_fork.listeners")

LONGEST_BY = 350
"""Characters of a reply that name zones; a reply line has 512 octets (RFC 5321 4.5.3.1.5)."""


class _CheckedClient:
    """A client that waits for the DNS, as the ledger shows it.

    :param dns_checks: by whom
    :param task: in which
    """

    phase = "dns"
    tls = False
    messages = 0
    helo = ""

    def __init__(self, dns_checks: DnsChecks, task: asyncio.Task[None]) -> None:
        self._dns_checks = dns_checks
        self._task = task

    def kick(self, reply: bytes) -> None:
        """End, with *reply* as the last word (see :class:`smtpd_fork.gate.ledger.Holder`)."""
        self._dns_checks.send_away(self._task, reply)


class DnsChecks:
    """Holds clients while the DNS is asked about them.

    :param dns: is asked
    :param threshold: the weight of the zones that list a client, from which on it is refused
    :param names: whether the clients' names are asked for
    :param seconds: how long it may take in all
    :param welcome: takes who may come in: listener, socket, peer, ticket
    :param refuse: answers who may not, and closes
    """

    def __init__(
        self,
        dns: Resolver,
        *,
        threshold: int,
        names: bool,
        seconds: float,
        welcome: Welcome,
        refuse: Refuse,
    ) -> None:
        self._dns = dns
        self._threshold = threshold
        self._names = names
        self._seconds = seconds
        self._welcome = welcome
        self._refuse = refuse
        self._check = DnsblCheck(dns)
        self._tasks: dict[asyncio.Task[None], tuple[Listener, socket.socket, Ticket]] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def hold(
        self, listener: Listener, sock: socket.socket, peer: SocketAddress | str, ticket: Ticket
    ) -> None:
        """Have a client wait; socket and ticket are this one's until it is let on or has gone."""
        ticket.listener = listener
        task = asyncio.get_running_loop().create_task(
            self._check_client(listener, sock, peer, ticket)
        )
        ticket.holder = _CheckedClient(self, task)
        self._tasks[task] = (listener, sock, ticket)
        task.add_done_callback(self._done)

    async def _check_client(
        self, listener: Listener, sock: socket.socket, peer: SocketAddress | str, ticket: Ticket
    ) -> None:
        host = source_key(peer) or ""
        listed, ticket.host_name_dns = await asyncio.gather(
            self._dns.listed(host), self._name(host)
        )
        task = asyncio.current_task()
        assert task is not None
        del self._tasks[task]  # from here on socket and ticket are somebody else's
        score = sum(listing.weight for listing in listed)
        if score >= self._threshold:
            self._refuse(listener, sock, self._refusal(host, score, listed))
            ticket.release()
        else:
            self._welcome(listener, sock, peer, ticket)

    async def _name(self, host: str) -> str | None:
        if self._names:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._seconds):  # it is two questions, or more
                    return await self._dns.name(host)
        return None

    def _refusal(self, host: str, score: int, listed: Sequence[Listing]) -> Refusal:
        by = ", ".join(sorted(map(str, listed)))
        if len(by) > LONGEST_BY:
            by = f"{by[:LONGEST_BY]}..."
        return Refusal(
            "dnsbl",
            host,
            score,
            self._threshold - 1,
            code=554,
            status="5.7.1",
            text=f"Access denied, {{key}} is listed by {by}",
            detail=f"listed by {by}",
        )

    def _done(self, task: asyncio.Task[None]) -> None:
        """See to a client whose task has ended before it was through."""
        left = self._tasks.pop(task, None)
        if left is not None:
            _, sock, ticket = left
            sock.close()
            ticket.release()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a client could not be vetted", exc_info=error)

    def send_away(self, task: asyncio.Task[None], reply: bytes) -> None:
        """Answer the client of *task* with *reply*, and close; nothing if it is through."""
        left = self._tasks.pop(task, None)
        if left is not None:
            listener, sock, ticket = left
            task.cancel()
            # A client that speaks TLS first cannot read a reply in the clear.
            refuse(sock, b"" if listener.tls else reply)
            ticket.release()

    @property
    def zones(self) -> Mapping[str, bool]:
        """The blocklists, and whether clients are looked up in them: IPv4 ones, say."""
        return {zone: (zone, False) not in self._dns.disabled for zone in self._dns.zones}

    def retire(self) -> None:
        """Get no more clients: the zones need not be checked any more."""
        self._check.stop()

    def stop(self, hostname: str) -> int:
        """Answer 421 to all; return how many there were."""
        self.retire()
        held = list(self._tasks)
        for task in held:
            self.send_away(task, shutdown_reply(hostname))
        return len(held)


def dns_checks_of(config: Config) -> Callable[..., DnsChecks] | None:
    """Return what makes the stage that asks the DNS; None if it is not wanted.

    :raises SmtpdForkError: it cannot be had
    """
    entries, nameserver = read_entries(config.dnsbl), parse_nameserver(config.dns_server)
    if not entries and not config.rdns:
        return None
    dns = Resolver(entries, nameserver, config.dns_timeout)
    return partial(
        DnsChecks,
        dns,
        threshold=config.dnsbl_threshold,
        names=config.rdns,
        seconds=config.dns_timeout,
    )
