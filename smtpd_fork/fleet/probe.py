"""Probe: checks whether a node can share its limits by the Redis in the settings."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from typing import TYPE_CHECKING, NamedTuple

from smtpd_fork.fleet.episodes import WITHOUT_FLEET
from smtpd_fork.fleet.node import KEEP_SECONDS
from smtpd_fork.fleet.settings import link_of
from smtpd_fork.fleet.sync import FleetError, Sync, decode, encode
from smtpd_fork.fleet.view import read_view
from smtpd_fork.units import counted

if TYPE_CHECKING:
    from smtpd_fork.config import Config
    from smtpd_fork.fleet.redis_link import RedisLink

__all__ = ["ProbeResult", "probe"]

SECONDS = 10.0
"""Timeout of the probe."""

KEEPS_ALL = "noeviction"


class ProbeResult(NamedTuple):
    """The result of a probe.

    :ivar found: one line about the fleet; empty if it could not be reached
    :ivar warnings: the errors; a daemon starts nevertheless, and its own limits apply
    """

    found: str
    warnings: list[str]


def probe(config: Config) -> ProbeResult:
    """Send Redis the message of a node that joins and leaves at once. Nothing remains in Redis.

    This function blocks.

    :raises SettingError: the address, the password or the CA certificates cannot be read
    :raises MissingLibraryError: redis-py is not installed
    """
    link = link_of(config)
    return asyncio.run(_probe(link, config))


async def _probe(link: RedisLink, config: Config) -> ProbeResult:
    try:
        async with asyncio.timeout(SECONDS):
            try:
                await link.open()
                return await _ask(link, config)
            finally:
                await link.close()
    except TimeoutError:
        reason = f"no answer within {SECONDS:g} s"
    except FleetError as error:
        reason = str(error)
    meanwhile = WITHOUT_FLEET[config.when_fleet_down]
    return ProbeResult("", [f"fleet out of reach, {meanwhile}: {link.description}: {reason}"])


async def _ask(link: RedisLink, config: Config) -> ProbeResult:
    server = await link.server()
    warnings = []
    if server.refused:
        commands = ", ".join(server.refused)
        warnings.append(
            f"{link.description}: the ACL of Redis refuses commands that a node needs: {commands}"
        )
        return ProbeResult("", warnings)
    node = f"check-{secrets.token_hex(3)}"
    lease, keep = round(config.fleet_lease * 1000), round(KEEP_SECONDS * 1000)
    message = encode(Sync(node, lease, keep, 0, 0, 0, leaves=True))
    began = time.monotonic()
    decode(await link.call([], message), 0)
    seconds = time.monotonic() - began
    nodes = len((await read_view(link)).nodes)
    if seconds > config.fleet_timeout:
        warnings.append(
            f"{link.description} answered after {seconds * 1000:.0f} ms, which is longer than "
            f"--fleet-timeout ({config.fleet_timeout * 1000:g} ms)"
        )
    if server.policy not in {"", KEEPS_ALL}:
        warnings.append(
            f"{link.description}: with maxmemory-policy {server.policy} Redis may evict the counts "
            f"of the nodes; use {KEEPS_ALL}"
        )
    version = re.sub("^(?=.)", " ", server.version)
    found = f"fleet: {link.description}: Redis{version}, {counted(nodes, 'node')}"
    return ProbeResult(f"{found}, round trip {seconds * 1000:.1f} ms", warnings)
