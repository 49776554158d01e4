"""Lookup: what the DNS knows of an address: blocklists (RFC 5782) that have it, and its name.

Whatever fails is as if it had not been asked: a resolver that is down must not stop the mail.
dnspython asks, and keeps answers for as long as their TTL says.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any

from smtpd_fork.config import SettingError
from smtpd_fork.errors import ConfigError
from smtpd_fork.listeners.address import parse_address

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["Dns", "parse_nameserver", "read_zones"]

log = logging.getLogger("smtpd_fork.listeners")

CACHE_SIZE = 50_000
"""Answers that are kept."""

DNS_PORT = 53

COMPLAINT_SECONDS = 60.0
"""How often, at most, it is told that a zone does not answer."""

LONGEST_ZONE = 180
"""Characters: 64 more for a reversed address of IPv6 make the longest name of all."""

LISTED = ip_network("127.0.0.0/8")
"""Where the answers of a blocklist are (RFC 5782 2.1); any other is of a zone that was given up."""


_ZONE = re.compile(r"(?:[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.?)+")


def read_zones(values: Iterable[str]) -> dict[str, int]:
    """Read blocklists, each ``ZONE`` or ``ZONE=WEIGHT``; a weight below 0 is a list of good ones.

    :raises SettingError: one cannot be read
    """
    zones = {}
    for value in values:
        zone, equals, weight = value.partition("=")
        if not _ZONE.fullmatch(zone) or len(zone) > LONGEST_ZONE:
            raise SettingError("dnsbl", value, "write ZONE or ZONE=WEIGHT")
        if equals and not re.fullmatch(r"-?[0-9]{1,4}", weight):
            raise SettingError("dnsbl", value, "the weight is a whole number of up to 4 digits")
        zones[zone] = int(weight) if equals else 1
    return zones


def parse_nameserver(text: str | None) -> tuple[str, int] | None:
    """Read ``ADDRESS`` or ``ADDRESS:PORT``.

    :raises SettingError: it is none
    """
    if text is None:
        return None
    try:
        address = parse_address(text)
        return str(ip_address(address.host)), DNS_PORT if address.port is None else address.port
    except (SettingError, ValueError):
        raise SettingError("dns_server", text, "write ADDRESS or ADDRESS:PORT") from None


class Dns:
    """Asks the DNS about clients.

    :param zones: blocklists, and what each weighs
    :param nameserver: whom to ask, and its port; None: the system's
    :param seconds: how long all the questions of a client may take
    :raises ConfigError: dnspython is not installed, or the system names no resolver
    """

    def __init__(
        self, zones: Mapping[str, int], nameserver: tuple[str, int] | None, seconds: float
    ) -> None:
        try:
            import dns.asyncresolver  # noqa: PLC0415 - an extra, for those who ask the DNS
            import dns.resolver  # noqa: PLC0415 - as above
        except ImportError:
            raise ConfigError("the DNS takes dnspython: install smtpd-fork[dns]") from None
        try:
            self._resolver = dns.asyncresolver.Resolver(configure=nameserver is None)
        except dns.resolver.NoResolverConfiguration as error:
            raise ConfigError(f"the system names no resolver: {error}") from None
        if nameserver is not None:
            self._resolver.nameservers = [nameserver[0]]
            self._resolver.port = nameserver[1]
        self._resolver.cache = dns.resolver.LRUCache(CACHE_SIZE)
        self._resolver.lifetime = seconds
        self._zones = dict(zones)
        self._complained: dict[str, float] = {}

    async def listed(self, host: str) -> dict[str, int]:
        """Return the zones that list *host*, and what they weigh."""
        answers = await asyncio.gather(*(self._is_listed(host, zone) for zone in self._zones))
        return {
            zone: self._zones[zone] for zone, yes in zip(self._zones, answers, strict=True) if yes
        }

    async def _is_listed(self, host: str, zone: str) -> bool:
        import dns.name  # noqa: PLC0415 - as in the constructor
        import dns.reversename  # noqa: PLC0415 - as above

        origin = dns.name.from_text(zone)
        name = dns.reversename.from_address(host, v4_origin=origin, v6_origin=origin)
        answer = await self._ask(name, "A", zone)
        return any(ip_address(record.address) in LISTED for record in answer)

    async def name(self, host: str) -> str | None:
        """Return the name of *host* that leads back to it (RFC 8601 2.7.3: iprev), or None."""
        import dns.reversename  # noqa: PLC0415 - as in the constructor

        kind = "AAAA" if ":" in host else "A"
        for pointer in (await self._ask(dns.reversename.from_address(host), "PTR", "rDNS"))[:3]:
            for record in await self._ask(pointer.target, kind, "rDNS"):
                if ip_address(record.address) == ip_address(host):
                    return str(pointer.target).rstrip(".").lower()
        return None

    async def _ask(self, name: Any, kind: str, what: str) -> Sequence[Any]:
        """Return the records of *name*; none if there are none, or nobody answers."""
        import dns.exception  # noqa: PLC0415 - as in the constructor
        import dns.resolver  # noqa: PLC0415 - as above

        try:
            return list(await self._resolver.resolve(name, kind))
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
            return []
        except (dns.exception.DNSException, OSError) as error:
            self._complain(what, error)
            return []

    def _complain(self, what: str, error: Exception) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._complained.get(what, -math.inf) >= COMPLAINT_SECONDS:
            self._complained[what] = now
            reason = str(error).partition("\n")[0][:200] or type(error).__name__
            log.warning("%s does not answer, clients come in without it: %s", what, reason)
