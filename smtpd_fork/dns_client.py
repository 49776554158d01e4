"""DnsClient: queries the DNS with dnspython, which caches the answers for their TTL."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

from smtpd_fork.errors import ConfigError, MissingLibraryError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["DnsClient", "DnsError", "import_dnspython"]

_MODULES = ("dns.asyncresolver", "dns._asyncio_backend")
_RECORD_TYPES = ("ANY.CNAME", "ANY.OPT", "ANY.SOA", "IN.A", "IN.AAAA")
"""Modules of record types that any answer may contain, besides those that callers query."""

LONGEST_REASON = 200
"""Maximum characters of dnspython's error text."""


class DnsError(Exception):
    """A query has failed; the text of the error is the reason."""


class DnsClient:
    """Queries the DNS. Call :func:`import_dnspython` first.

    :param nameserver: address and port of the DNS server; None: the servers of the system
    :param seconds: the time limit for a query
    :param cache_size: maximum of cached answers
    :raises ConfigError: the system has no DNS server configured
    """

    def __init__(
        self, nameserver: tuple[str, int] | None, *, seconds: float, cache_size: int
    ) -> None:
        import dns.asyncresolver  # noqa: PLC0415 - an optional dependency
        import dns.resolver  # noqa: PLC0415 - as above

        try:
            self._resolver = dns.asyncresolver.Resolver(configure=nameserver is None)
        except dns.resolver.NoResolverConfiguration as error:
            raise ConfigError(f"the system has no DNS server configured: {error}") from None
        if nameserver is not None:
            self._resolver.nameservers = [nameserver[0]]
            self._resolver.port = nameserver[1]
        self._cache = self._resolver.cache = dns.resolver.LRUCache(cache_size)
        self._resolver.lifetime = seconds
        self._backend = _leakless_backend()

    async def query(self, name: Any, kind: str) -> list[Any]:
        """Return the records of a name; the list may be empty.

        :param name: text, or a name object of dnspython
        :param kind: ``A``, ``MX``, ...
        :raises DnsError: the query has failed
        """
        import dns.exception  # noqa: PLC0415 - as in the constructor
        import dns.resolver  # noqa: PLC0415 - as above

        try:
            return list(await self._resolver.resolve(name, kind, backend=self._backend))
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
            return []
        except (dns.exception.DNSException, OSError) as error:
            text = str(error).partition("\n")[0][:LONGEST_REASON]
            raise DnsError(text or type(error).__name__) from None

    def forget(self, name: Any, kind: str) -> None:
        """Remove the cached answer to a query.

        :param name: a name object of dnspython
        """
        import dns.rdataclass  # noqa: PLC0415 - as in the constructor
        import dns.rdatatype  # noqa: PLC0415 - as above

        for rdatatype in (kind, dns.rdatatype.ANY):  # NXDOMAIN is cached as ANY
            key = name, dns.rdatatype.RdataType.make(rdatatype), dns.rdataclass.IN
            self._cache.flush(key)


def import_dnspython(feature: str, record_types: Iterable[str]) -> None:
    """Import dnspython before privileges are dropped, as USER may not be able to read it.

    dnspython itself would import these modules at the first answer.

    :param feature: the feature that needs it, for the error
    :param record_types: modules of the records that are queried: ``ANY.MX``, ...
    :raises MissingLibraryError: dnspython is not installed
    """
    try:
        for module in (*_MODULES, *(f"dns.rdtypes.{e}" for e in (*_RECORD_TYPES, *record_types))):
            import_module(module)
    except ImportError:
        raise MissingLibraryError(feature, ["dnspython"], "dns") from None


def _leakless_backend() -> Any:
    """Return a socket backend for dnspython that leaks no socket on cancellation.

    If the task that waits for a new datagram endpoint is cancelled, asyncio loses the endpoint and
    does not close its socket. Without this backend, each client that is refused at that moment
    would leak a file descriptor.
    """
    import dns.asyncbackend  # noqa: PLC0415 - as in the constructor

    class Backend(type(dns.asyncbackend.get_backend("asyncio"))):  # type: ignore[misc]
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
