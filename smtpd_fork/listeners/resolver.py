"""Resolver: queries the DNS for blocklists (RFC 5782) that list a client, and for its reverse name.

A failed query has the same effect as no query: a name server that is down must not stop the mail.
"""

from __future__ import annotations

import asyncio
import logging
import math
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, Any

from smtpd_fork.config import SettingError
from smtpd_fork.dns_client import DnsClient, DnsError, import_dnspython
from smtpd_fork.errors import error_origin
from smtpd_fork.listeners.address import parse_address
from smtpd_fork.listeners.dnsbl import Entry, Listing, error_of, listing_of, read_entries

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smtpd_fork.config import Config

__all__ = ["Resolver", "parse_nameserver", "resolver_of"]

log = logging.getLogger("smtpd_fork.listeners")

CACHE_SIZE = 50_000
"""Maximum of cached answers."""

DNS_PORT = 53

WARNING_INTERVAL_SECONDS = 60.0
"""Minimum time between two warnings about a zone that does not answer, or answers with errors."""

MAX_ANSWERS = 64
"""Maximum of answers of one zone that are evaluated; a list normally returns a few."""


def parse_nameserver(text: str | None) -> tuple[str, int] | None:
    """Parse ``ADDRESS`` or ``ADDRESS:PORT``.

    :raises SettingError: the value is invalid
    """
    if text is None:
        return None
    try:
        address = parse_address(text)
        return str(ip_address(address.host)), DNS_PORT if address.port is None else address.port
    except (SettingError, ValueError):
        raise SettingError("dns_server", text, "write ADDRESS or ADDRESS:PORT") from None


@error_origin("dnsbl", "rdns")
def resolver_of(config: Config) -> Resolver | None:
    """Return a resolver for the settings of *config*; None if they need no DNS queries.

    :raises SmtpdForkError: a setting is invalid, or the resolver cannot be created
    """
    entries, nameserver = read_entries(config.dnsbl), parse_nameserver(config.dns_server)
    if not entries and not config.rdns:
        return None
    return Resolver(entries, nameserver, config.dns_timeout)


class Resolver:
    """Queries the DNS about clients.

    :param entries: the blocklists
    :param nameserver: address and port of the DNS server; None: the servers of the system
    :param seconds: the time limit for a query
    :ivar zones: names of the blocklists
    :ivar disabled: maps (zone, whether for IPv6 clients) to the reason why no client is looked up
        there; :class:`~smtpd_fork.listeners.dnsbl_health_check.DnsblHealthCheck` maintains it
    :raises ConfigError: dnspython is not installed, or the system has no DNS server configured
    """

    def __init__(
        self, entries: Sequence[Entry], nameserver: tuple[str, int] | None, seconds: float
    ) -> None:
        import_dnspython("the DNS", ["ANY.PTR", "ANY.TXT"])
        self._dns = DnsClient(nameserver, seconds=seconds, cache_size=CACHE_SIZE)
        self._entries = tuple(entries)
        self.zones = tuple(dict.fromkeys(entry.zone for entry in entries))
        self.disabled: dict[tuple[str, bool], str] = {}
        self._warned: dict[str, tuple[float, int]] = {}

    async def listed(self, host: str) -> list[Listing]:
        """Return a listing for each zone that lists *host*."""
        ipv6 = ":" in host
        zones = [zone for zone in self.zones if (zone, ipv6) not in self.disabled]
        found = await asyncio.gather(*(self._listing(host, zone) for zone in zones))
        return [listing for listing in found if listing is not None]

    async def _listing(self, host: str, zone: str) -> Listing | None:
        answers = await self.answers(host, zone) or []
        for answer in answers:
            if (error := error_of(answer)) is not None:
                self._warn(f"{zone} answers", f"the blocklist {zone} answers {answer} ({error})")
                return None
        return listing_of(zone, answers, self._entries)

    async def answers(
        self, host: str, zone: str, *, fresh: bool = False
    ) -> list[IPv4Address] | None:
        """Return the answers of *zone* about *host*; None if the query fails.

        :param fresh: whether to ignore a cached answer
        """
        import dns.name  # noqa: PLC0415 - an optional dependency

        name = dns.name.from_text(_reversed(host), origin=dns.name.from_text(zone))
        if fresh:
            self._dns.forget(name, "A")
        records = await self._ask(name, "A", zone)
        if records is None:
            return None
        return [IPv4Address(record.address) for record in records[:MAX_ANSWERS]]

    async def name(self, host: str) -> str | None:
        """Return the name of *host* if it resolves to *host* (iprev, RFC 8601 2.7.3), else None."""
        import dns.reversename  # noqa: PLC0415 - an optional dependency

        kind = "AAAA" if ":" in host else "A"
        pointers = await self._ask(dns.reversename.from_address(host), "PTR", "rDNS") or []
        for pointer in pointers[:3]:
            for record in await self._ask(pointer.target, kind, "rDNS") or []:
                if ip_address(record.address) == ip_address(host):
                    return str(pointer.target).rstrip(".").lower()
        return None

    async def _ask(self, name: Any, kind: str, what: str) -> list[Any] | None:
        """Return the records of *name*, perhaps an empty list; None if the query fails."""
        try:
            return await self._dns.query(name, kind)
        except DnsError as error:
            self._warn(what, f"{what} does not answer ({error})")
            return None

    def _warn(self, what: str, fault: str) -> None:
        """Log *fault* at most once a minute for each *what*, with the number of skipped lines."""
        now = asyncio.get_running_loop().time()
        since, count = self._warned.get(what, (-math.inf, 0))
        if now - since < WARNING_INTERVAL_SECONDS:
            self._warned[what] = since, count + 1
            return
        self._warned[what] = now, 0
        more = f"; {count} more failures since the last warning" if count else ""
        log.warning("%s: clients are accepted without it%s", fault, more)


def _reversed(host: str) -> str:
    """Return the name of *host* in a blocklist: its octets, or IPv6 nibbles, in reverse order."""
    address = ip_address(host)
    if isinstance(address, IPv6Address):
        return ".".join(reversed(address.packed.hex()))
    return ".".join(reversed(host.split(".")))
