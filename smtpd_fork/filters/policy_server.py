"""PolicyServer: the policy server of a filter ``policy``, with a pool of connections to it."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import TYPE_CHECKING

from smtpd_fork.filters.milter_address import parse_milter_address
from smtpd_fork.hops.errors import HopError
from smtpd_fork.hops.peer_status import PeerStatus
from smtpd_fork.hops.policy import PolicyRequest, PolicyTarget
from smtpd_fork.hops.pool import Pool
from smtpd_fork.hops.probe import PROBE_SECONDS
from smtpd_fork.setting_types import SettingError

if TYPE_CHECKING:
    from smtpd_fork.hops.address import HopAddress
    from smtpd_fork.hops.connection import HopConnection
    from smtpd_fork.hops.peer_status import Outage

__all__ = ["PolicyServer"]

log = logging.getLogger("smtpd_fork.policy")


class PolicyServer:
    """A policy server with one or several addresses, which are tried in order.

    :param address: ``unix:PATH`` or ``HOST:PORT``; several are separated by spaces
    :param when_down: what happens while the server is down, for the log
    :param connections: maximum connections to the server
    :param seconds: timeout of an answer, including the wait for a connection
    :raises SettingError: *address* is empty or not valid
    """

    def __init__(self, address: str, *, when_down: str, connections: int, seconds: float) -> None:
        addresses = tuple(parse_milter_address(each) for each in address.split())
        if not addresses:
            raise SettingError("address", address, "write HOST:PORT or unix:PATH")
        self._target = PolicyTarget(addresses, "", when_down=when_down)
        self._connections = connections
        self._seconds = seconds
        self._pool: Pool | None = None

    def __str__(self) -> str:
        return str(self._target)

    def status(self, outage: Outage) -> PeerStatus:
        """Return the state of the server and of the connections to it.

        :param outage: the server's current outage, if any
        """
        pool, since, reason = self._pool, outage.since, outage.reason
        if pool is None:
            return PeerStatus(down_since=since, reason=reason)
        return PeerStatus(pool.connections, pool.busy, pool.waiting, since, reason)

    async def ask(self, request: bytes) -> str:
        """Send a request, and return the action of the answer.

        :raises HopError: the server is down, too slow, or breaks the protocol
        """
        pending = PolicyRequest(request)

        def order_for(_: HopConnection) -> PolicyRequest:
            return pending

        limit = asyncio.timeout(self._seconds)
        try:
            async with limit:
                await self._usable_pool().carry_out(order_for)
        except TimeoutError:
            raise HopError(f"no answer within {self._seconds:g} s") from None
        if pending.action is None:
            raise pending.fault or HopError("no answer")
        return pending.action

    def _usable_pool(self) -> Pool:
        pool = self._pool
        if pool is None or not pool.usable:
            pool = self._pool = Pool(self._target, self._connections, self._seconds, name="")
        return pool

    def probe(self) -> None:
        """Log a warning if no address of the server accepts a connection; blocks."""
        errors = [_connection_error(address) for address in self._target.addresses]
        if all(errors):
            text = "the policy server %s is not available: %s; %s until it is"
            log.warning(text, self, errors[0], f"when-down={self._target.when_down}")

    async def close(self) -> None:
        """Close the connections."""
        pool, self._pool = self._pool, None
        if pool is not None and pool.usable:
            await pool.close()


def _connection_error(address: HopAddress) -> str:
    """Connect to a server; return the text of the error, or an empty string."""
    try:
        if not address.path:
            socket.create_connection((address.host, address.port), PROBE_SECONDS).close()
            return ""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(PROBE_SECONDS)
            sock.connect(address.path)
    except OSError as error:
        return error.strerror or str(error)
    return ""
