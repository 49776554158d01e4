"""DnsblHealthCheck: checks the blocklists by their test entries (RFC 5782 5).

A list must have an entry for 127.0.0.2 and none for 127.0.0.1; for IPv6 an entry for ::ffff:7f00:2
and none for ::ffff:7f00:1. An abandoned list may list every address, or none; a list that refuses
this resolver answers with an error. Mail must not be refused because of such a list, so no client
is looked up in it until a check succeeds. The checks run in the background, when the server starts
and once an hour.
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
"""Time between two checks of a zone."""


class _Family(NamedTuple):
    """The test entries of IPv4 or IPv6.

    :ivar required: whether a list must have the entry *listed*; many lists have no IPv6 entries
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
    """Checks the zones of a :class:`Resolver`, from its creation until :meth:`stop`.

    :param dns: zones that do not work are added to ``dns.disabled``
    """

    def __init__(self, dns: Resolver) -> None:
        self._dns = dns
        self._task: asyncio.Task[None] | None = None
        if dns.zones:
            self._task = asyncio.get_running_loop().create_task(self._run())

    def stop(self) -> None:
        """Stop the checks."""
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
        problem = await self._find_error(zone, family)
        disabled, key = self._dns.disabled, (zone, family.name == "IPv6")
        if problem:
            if disabled.get(key) != problem:
                log.warning(
                    "the blocklist %s %s: it is not used for %s clients until a check succeeds; "
                    "it is checked once an hour",
                    zone, problem, family.name,
                )  # fmt: skip
            disabled[key] = problem
        elif problem is not None and disabled.pop(key, None) is not None:
            log.warning(
                "the blocklist %s works again: it is used for %s clients",
                zone, family.name,
            )  # fmt: skip

    async def _find_error(self, zone: str, family: _Family) -> str | None:
        """Return the problem of *zone*; empty if it works, None if it does not answer."""
        listed = await self._dns.answers(family.listed, zone, fresh=True)
        not_listed = await self._dns.answers(family.not_listed, zone, fresh=True)
        if listed is None or not_listed is None:
            return None
        for answer in (*listed, *not_listed):
            if (error := error_of(answer)) is not None:
                return f"answers {answer} ({error})"
        if not_listed:
            return f"lists {family.not_listed}, which a blocklist must not list (RFC 5782)"
        if not listed and family.required:
            return f"does not list {family.listed}, which a blocklist must list (RFC 5782)"
        return ""
