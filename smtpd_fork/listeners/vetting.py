"""Vetting: what the DNS knows of a client, before it is greeted: blocklists (RFC 5782), its name.

All questions of a client are asked at once. Whatever fails is as if it had not been asked: a
resolver that is down must not stop the mail. dnspython asks, and keeps answers for as long as their
TTL says.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
from contextlib import suppress
from functools import partial
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any

from smtpd_fork.config import SettingError
from smtpd_fork.errors import ConfigError
from smtpd_fork.gate import Refusal
from smtpd_fork.gate.verdict import shutdown_reply
from smtpd_fork.listeners.address import parse_address
from smtpd_fork.listeners.refuse import refuse
from smtpd_fork.net import describe, source_key

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from smtpd_fork.config import Config
    from smtpd_fork.gate import Ticket
    from smtpd_fork.listeners.listener import Listener
    from smtpd_fork.net import SocketAddress

    Welcome = Callable[[Listener, socket.socket, SocketAddress | str, Ticket], None]
    Refuse = Callable[[Listener, socket.socket, Refusal], None]

__all__ = ["Dns", "Vetting", "parse_nameserver", "read_zones", "vetting_of"]

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


class _Vetted:
    """A client that is vetted, for the ledger."""

    phase = "dns"
    tls = False
    messages = 0


class Vetting:
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
        dns: Dns,
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
        self._tasks: dict[asyncio.Task[None], tuple[Listener, socket.socket, Ticket]] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def hold(
        self, listener: Listener, sock: socket.socket, peer: SocketAddress | str, ticket: Ticket
    ) -> None:
        """Have a client wait; socket and ticket are this one's until it is let on or has gone."""
        ticket.holder = _Vetted()
        ticket.listener = listener
        task = asyncio.get_running_loop().create_task(self._vet(listener, sock, peer, ticket))
        self._tasks[task] = (listener, sock, ticket)
        task.add_done_callback(self._done)

    async def _vet(
        self, listener: Listener, sock: socket.socket, peer: SocketAddress | str, ticket: Ticket
    ) -> None:
        host = source_key(peer) or ""
        listed, ticket.host_name_dns = await asyncio.gather(
            self._dns.listed(host), self._name(host)
        )
        task = asyncio.current_task()
        assert task is not None
        del self._tasks[task]  # from here on socket and ticket are somebody else's
        score = sum(listed.values())
        if score >= self._threshold:
            log.info("%s is listed by %s", describe(peer), ", ".join(sorted(listed)))
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

    def _refusal(self, host: str, score: int, listed: Mapping[str, int]) -> Refusal:
        return Refusal(
            "dnsbl",
            host,
            score,
            self._threshold - 1,
            code=554,
            status="5.7.1",
            text=f"Access denied, {{key}} is listed by {', '.join(sorted(listed))}",
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

    def stop(self, hostname: str) -> int:
        """Answer 421 to all who are held; return how many there were."""
        answered = 0
        for task, (listener, sock, ticket) in list(self._tasks.items()):
            del self._tasks[task]
            task.cancel()
            refuse(sock, b"" if listener.tls else shutdown_reply(hostname))
            ticket.release()
            answered += 1
        return answered


def vetting_of(config: Config) -> Callable[..., Vetting] | None:
    """Return what makes the stage that asks the DNS; None if it is not wanted.

    :raises SmtpdForkError: it cannot be had
    """
    zones, nameserver = read_zones(config.dnsbl), parse_nameserver(config.dns_server)
    if not zones and not config.rdns:
        return None
    dns = Dns(zones, nameserver, config.dns_timeout)
    return partial(
        Vetting,
        dns,
        threshold=config.dnsbl_threshold,
        names=config.rdns,
        seconds=config.dns_timeout,
    )
