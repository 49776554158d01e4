"""Lookup: find the servers of a next hop, in the order in which they are tried (RFC 5321 5.1)."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, NamedTuple

from smtpd_fork.dns_client import DnsClient, DnsError, import_dnspython
from smtpd_fork.hops.errors import HopError

if TYPE_CHECKING:
    from smtpd_fork.hops.address import HopAddress
    from smtpd_fork.hops.target import Target

__all__ = ["Endpoint", "Lookup", "import_libraries"]

DNS_SECONDS = 10.0
"""Timeout of a DNS query; our client waits for the reply to RCPT meanwhile."""

CACHE_SIZE = 1000

MOST_SERVERS = 10
"""Maximum servers of a domain, and maximum addresses of a server, that are tried; Postfix has a
similar limit (smtp_mx_address_limit is 5)."""

NO_MAIL = "556 5.1.10 The domain of the next mail server takes no mail"
NO_ANSWER = "451 4.4.3 The next mail server cannot be looked up, try again later"
NO_SERVER = "451 4.4.4 The next mail server cannot be looked up, try again later"


class Endpoint(NamedTuple):
    """The address of a server.

    :ivar host: a host name or an IP address; empty for a unix socket
    :ivar port: the port; 0 for a unix socket
    :ivar path: the path of a unix socket, or an empty string
    :ivar name: the host name that its certificate has to contain
    """

    host: str
    port: int
    path: str
    name: str

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        name = f" ({self.name})" if self.name != self.host else ""
        return f"{host}:{self.port}{name}"


class Lookup:
    """Finds the servers of a target.

    :raises MissingLibraryError: the target has ``mx:``, and dnspython is not installed
    :raises ConfigError: the target has ``mx:``, and the system has no DNS server configured
    """

    def __init__(self, target: Target) -> None:
        self._addresses = target.addresses
        import_libraries(target)
        if any(address.mx for address in target.addresses):
            self._dns = DnsClient(target.nameserver, seconds=DNS_SECONDS, cache_size=CACHE_SIZE)

    async def endpoints(self) -> list[Endpoint]:
        """Return the servers, in the order in which they are tried.

        :raises HopError: there are none: the DNS did not answer, or has no mail server
        """
        found: list[Endpoint] = []
        error: HopError | None = None
        for address in self._addresses:
            if not address.mx:
                found.append(Endpoint(address.host, address.port, address.path, address.host))
                continue
            try:
                found += await self._servers(address)
            except HopError as failed:
                error = failed
        if not found and error is not None:
            raise error
        return found

    async def _servers(self, address: HopAddress) -> list[Endpoint]:
        """Return the addresses of a domain's mail servers."""
        records = await self._ask(address.host, "MX")
        names = [
            (record.preference, record.exchange.to_text(omit_final_dot=True)) for record in records
        ]
        if len(names) == 1 and names[0][1] in {"", "."}:
            raise HopError(f"{address.host} accepts no mail (null MX, RFC 7505)", NO_MAIL)
        random.shuffle(names)  # distribute the load among servers of the same preference
        names.sort(key=lambda each: each[0])
        found: list[Endpoint] = []
        failed: HopError | None = None
        for _, name in names[:MOST_SERVERS] or [(0, address.host)]:
            try:
                hosts = await self._hosts(name)
            except HopError as error:
                failed = error
                continue
            found += [Endpoint(host, address.port, "", name) for host in hosts]
        if not found:
            raise failed or HopError(f"{address.host} has no mail server in the DNS", NO_SERVER)
        return found

    async def _hosts(self, name: str) -> list[str]:
        """Return the IP addresses of a server."""
        hosts = []
        for kind in ("A", "AAAA"):
            hosts += [record.address for record in await self._ask(name, kind)]
        return hosts[:MOST_SERVERS]

    async def _ask(self, name: str, kind: str) -> list[Any]:
        """Return the records of a name; an empty list if there are none."""
        try:
            return await self._dns.query(name, kind)
        except DnsError as error:
            raise HopError(f"DNS of {name}: {error}", NO_ANSWER) from None


def import_libraries(target: Target) -> None:
    """Import the DNS modules: after dropping privileges their files may not be readable.

    :raises MissingLibraryError: the target has ``mx:``, and dnspython is not installed
    """
    if any(address.mx for address in target.addresses):
        import_dnspython("mx:", ["ANY.MX"])
