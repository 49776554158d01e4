"""DnsblHealthCheck: whether the blocklists work, by their test entries (RFC 5782 5).

A list has an entry for 127.0.0.2 and none for 127.0.0.1, or for IPv6 ::ffff:7f00:2 and none for
::ffff:7f00:1. One that was given up may list every address, or none; one that refuses this
resolver answers with an error. Such a list must not turn mail away, so no client is looked up in
it until a check succeeds. Lists are checked when the server starts, in the
background, and once an hour.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, NamedTuple

from smtpd_fork.listeners.dnsbl import error_of

if TYPE_CHECKING:
    from smtpd_fork.listeners.resolver import Resolver

__all__ = ["DnsblHealthCheck"]

log = logging.getLogger("smtpd_fork.listeners")

CHECK_SECONDS = 3600.0
"""Between two checks of a zone."""


class _Family(NamedTuple):
    """The test entries of IPv4 or IPv6.

    :ivar required: whether a list without *listed* does not work; many list no IPv6
    """

    name: str
    listed: str
    not_listed: str
    required: bool


_FAMILIES = (
    _Family("IPv4", "127.0.0.2", "127.0.0.1", required=True),
    _Family("IPv6", "::ffff:7f00:2", "::ffff:7f00:1", required=False),
)


class DnsblHealthCheck:
    """Checks the zones of a :class:`Resolver`, from now on until it is stopped.

    :param dns: what it does not ask any more is in ``dns.disabled``
    """

    def __init__(self, dns: Resolver) -> None:
        self._dns = dns
        self._task: asyncio.Task[None] | None = None
        if dns.zones:
            self._task = asyncio.get_running_loop().create_task(self._run())

    def stop(self) -> None:
        """Check no more."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _run(self) -> None:
        while True:
            checks = [self._check(zone, each) for zone in self._dns.zones for each in _FAMILIES]
            for result in await asyncio.gather(*checks, return_exceptions=True):
                if isinstance(result, Exception):
                    log.error("a blocklist could not be checked", exc_info=result)
            await asyncio.sleep(CHECK_SECONDS)

    async def _check(self, zone: str, family: _Family) -> None:
        fault = await self._fault(zone, family)
        disabled, key = self._dns.disabled, (zone, family.name == "IPv6")
        if fault:
            if disabled.get(key) != fault:
                log.warning(
                    "the blocklist %s %s: it is not used for %s clients until a check succeeds; "
                    "it is checked once an hour",
                    zone, fault, family.name,
                )  # fmt: skip
            disabled[key] = fault
        elif fault is not None and disabled.pop(key, None) is not None:
            log.warning(
                "the blocklist %s works again: it is used for %s clients",
                zone, family.name,
            )  # fmt: skip

    async def _fault(self, zone: str, family: _Family) -> str | None:
        """Return what is wrong with *zone*; empty if nothing is, None without an answer."""
        listed = await self._dns.answers(family.listed, zone, fresh=True)
        not_listed = await self._dns.answers(family.not_listed, zone, fresh=True)
        if listed is None or not_listed is None:
            return None
        for answer in (*listed, *not_listed):
            if (error := error_of(answer)) is not None:
                return f"answers {answer} ({error})"
        if not_listed:
            return f"lists {family.not_listed}, which no blocklist may (RFC 5782)"
        if not listed and family.required:
            return f"does not list {family.listed}, which every blocklist must (RFC 5782)"
        return ""
