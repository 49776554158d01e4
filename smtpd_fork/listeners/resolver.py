"""Resolver: queries the DNS for blocklists (RFC 5782) that list a client, and for its reverse name.

A failed query has the same effect as no query: a name server that is down must not stop the mail.
dnspython sends the queries, and caches the answers for their TTL.
"""

from __future__ import annotations

import asyncio
import logging
import math
from contextlib import suppress
from importlib import import_module
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, Any

from smtpd_fork.config import SettingError
from smtpd_fork.errors import ConfigError, MissingLibraryError, error_origin
from smtpd_fork.listeners.address import parse_address
from smtpd_fork.listeners.dnsbl import Entry, Listing, error_of, listing_of, read_entries

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smtpd_fork.config import Config

__all__ = ["Resolver", "leakless_backend", "parse_nameserver", "resolver_of"]

log = logging.getLogger("smtpd_fork.listeners")

CACHE_SIZE = 50_000
"""Maximum of cached answers."""

DNS_PORT = 53

WARNING_INTERVAL_SECONDS = 60.0
"""Minimum time between two warnings about a zone that does not answer, or answers with errors."""

_RECORD_TYPES = ("IN.A", "IN.AAAA", "ANY.CNAME", "ANY.OPT", "ANY.PTR", "ANY.SOA", "ANY.TXT")

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
        try:
            import dns.asyncresolver  # noqa: PLC0415 - an optional dependency
            import dns.resolver  # noqa: PLC0415 - as above

            # dnspython would import them at the first answer, after privileges were dropped.
            for record_type in _RECORD_TYPES:
                import_module(f"dns.rdtypes.{record_type}")
        except ImportError:
            raise MissingLibraryError("the DNS", ["dnspython"], "dns") from None
        try:
            self._resolver = dns.asyncresolver.Resolver(configure=nameserver is None)
        except dns.resolver.NoResolverConfiguration as error:
            raise ConfigError(f"the system has no DNS server configured: {error}") from None
        if nameserver is not None:
            self._resolver.nameservers = [nameserver[0]]
            self._resolver.port = nameserver[1]
        self._cache = self._resolver.cache = dns.resolver.LRUCache(CACHE_SIZE)
        self._resolver.lifetime = seconds
        self._backend = leakless_backend()
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
        import dns.name  # noqa: PLC0415 - as in the constructor

        name = dns.name.from_text(_reversed(host), origin=dns.name.from_text(zone))
        if fresh:
            for kind in (dns.rdatatype.A, dns.rdatatype.ANY):  # NXDOMAIN is cached as ANY
                self._cache.flush((name, kind, dns.rdataclass.IN))
        records = await self._ask(name, "A", zone)
        if records is None:
            return None
        return [IPv4Address(record.address) for record in records[:MAX_ANSWERS]]

    async def name(self, host: str) -> str | None:
        """Return the name of *host* if it resolves to *host* (iprev, RFC 8601 2.7.3), else None."""
        import dns.reversename  # noqa: PLC0415 - as in the constructor

        kind = "AAAA" if ":" in host else "A"
        pointers = await self._ask(dns.reversename.from_address(host), "PTR", "rDNS") or []
        for pointer in pointers[:3]:
            for record in await self._ask(pointer.target, kind, "rDNS") or []:
                if ip_address(record.address) == ip_address(host):
                    return str(pointer.target).rstrip(".").lower()
        return None

    async def _ask(self, name: Any, kind: str, what: str) -> list[Any] | None:
        """Return the records of *name*, perhaps an empty list; None if the query fails."""
        import dns.exception  # noqa: PLC0415 - as in the constructor
        import dns.resolver  # noqa: PLC0415 - as above

        try:
            return list(await self._resolver.resolve(name, kind, backend=self._backend))
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
            return []
        except (dns.exception.DNSException, OSError) as error:
            reason = str(error).partition("\n")[0][:200] or type(error).__name__
            self._warn(what, f"{what} does not answer ({reason})")
            return None

    def _warn(self, what: str, fault: str) -> None:
        """Log *fault* at most once a minute for each *what*, with the number of skipped lines."""
        now = asyncio.get_running_loop().time()
        since, count = self._warned.get(what, (-math.inf, 0))
        if now - since < WARNING_INTERVAL_SECONDS:
            self._warned[what] = since, count + 1
            return
        self._warned[what] = now, 0
        more = f"; {count} times more before" if count else ""
        log.warning("%s: clients are accepted without it%s", fault, more)


def leakless_backend() -> Any:
    """Return a socket backend for dnspython that leaks no socket on cancellation.

    If the task that waits for a new datagram endpoint is cancelled, asyncio loses the endpoint and
    does not close its socket. Without this backend, each client that is refused at that moment
    would leak a file descriptor.
    """
    import dns.asyncbackend  # noqa: PLC0415 - as in the constructor

    class Backend(type(dns.asyncbackend.get_backend("asyncio"))):  # type: ignore[misc]  # as it says
        async def make_socket(self, *args: Any, **keywords: Any) -> Any:
            making = asyncio.ensure_future(super().make_socket(*args, **keywords))
            try:
                return await asyncio.shield(making)
            except asyncio.CancelledError:
                making.add_done_callback(_close)
                raise

    return Backend()


def _close(making: asyncio.Future[Any]) -> None:
    """Close the socket of a cancelled query."""
    if not making.cancelled() and making.exception() is None:
        closing = making.result().close()  # a coroutine that never suspends
        with suppress(StopIteration):
            closing.send(None)


def _reversed(host: str) -> str:
    """Return the name of *host* in a blocklist: its octets, or IPv6 nibbles, in reverse order."""
    address = ip_address(host)
    if isinstance(address, IPv6Address):
        return ".".join(reversed(address.packed.hex()))
    return ".".join(reversed(host.split(".")))
