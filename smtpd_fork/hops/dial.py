"""Dialler: connect to the first available server of a next hop."""

from __future__ import annotations

import asyncio
import math
import os
import socket
import ssl
from typing import TYPE_CHECKING

from smtpd_fork.hops.connection import HopConnection
from smtpd_fork.hops.errors import NOT_AVAILABLE, HopError
from smtpd_fork.hops.hop_client import State
from smtpd_fork.hops.lookup import Lookup
from smtpd_fork.hops.opening import UNTRUSTED

if TYPE_CHECKING:
    from collections.abc import Callable

    from smtpd_fork.hops.lookup import Endpoint
    from smtpd_fork.hops.target import Target

__all__ = ["Dialler"]

CONNECT_SECONDS = 10.0
"""Timeout of the TCP handshake: enough for two retransmissions of SYN. After that the next server
is likely to answer sooner."""

OPENING_SECONDS = 30.0
"""Timeout of greeting, EHLO, TLS and AUTH together: some servers delay their greeting by some
seconds. RFC 5321 4.5.3.2 recommends five minutes, but our client waits meanwhile."""

SWITCH_SECONDS = 10.0
"""The same timeout for all servers but the last: another server has to be reached while our client
waits for the reply to RCPT."""

AVOID_SECONDS = 10.0
"""Seconds during which a server that has failed is tried after all others."""


class _TlsFailedError(HopError):
    """The TLS handshake failed; opportunistic TLS continues in plaintext."""


class Dialler:
    """Makes connections to a target.

    :param name: our host name for EHLO
    :param changed: see :class:`HopConnection`
    :raises ConfigError: no DNS resolver is available for the target
    """

    def __init__(self, target: Target, name: str, changed: Callable[[HopConnection], None]) -> None:
        self._target = target
        self._name = name
        self._changed = changed
        self._lookup = Lookup(target)
        self._failed: dict[Endpoint, float] = {}

    async def dial(self) -> HopConnection:
        """Return a connection on which a transaction can begin.

        :raises HopError: no server is available; the text has the error of each server
        """
        loop = asyncio.get_running_loop()
        now = loop.time()
        endpoints = await self._lookup.endpoints()
        endpoints.sort(key=lambda each: now - self._failed.get(each, -math.inf) < AVOID_SECONDS)
        errors = []
        for endpoint in endpoints:
            try:
                seconds = OPENING_SECONDS if endpoint is endpoints[-1] else SWITCH_SECONDS
                connection = await self._to(endpoint, seconds)
            except HopError as error:
                errors.append(error)
                if len(endpoints) > 1:
                    self._note_failed(endpoint, loop.time())
                continue
            self._failed.pop(endpoint, None)
            return connection
        raise HopError("; ".join(error.reason for error in errors), errors[-1].reply)

    def _note_failed(self, endpoint: Endpoint, now: float) -> None:
        self._failed = {
            each: at for each, at in self._failed.items() if now - at < AVOID_SECONDS
        } | {endpoint: now}

    async def _to(self, endpoint: Endpoint, seconds: float) -> HopConnection:
        try:
            return await self._opened(endpoint, seconds, with_tls=True)
        except _TlsFailedError:
            if self._target.tls != "opportunistic":
                raise
            return await self._opened(endpoint, seconds, with_tls=False)

    async def _opened(self, endpoint: Endpoint, seconds: float, *, with_tls: bool) -> HopConnection:
        """Return a connection to one server.

        :param seconds: timeout of the opening
        :raises HopError: the server is not available
        """
        client = self._target.client(self._name, with_tls=with_tls)
        connection = HopConnection(client, str(endpoint), self._changed)
        try:
            await self._connect(connection, endpoint)
            async with asyncio.timeout(seconds):
                await self._open(connection, endpoint)
        except HopError as error:
            connection.abort("refused")
            kind = _TlsFailedError if isinstance(error, _TlsFailedError) else HopError
            raise kind(f"{endpoint}: {error.reason}", error.reply) from None
        except TimeoutError:
            connection.abort("too slow")
            raise HopError(f"{endpoint}: no answer in time") from None
        except OSError as error:
            connection.abort("failed")
            tls = isinstance(error, ssl.SSLError)
            raise HopError(
                f"{endpoint}: {_reason(error)}", UNTRUSTED if tls else NOT_AVAILABLE
            ) from None
        except BaseException:
            connection.abort("given up")
            raise
        return connection

    async def _connect(self, connection: HopConnection, endpoint: Endpoint) -> None:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(CONNECT_SECONDS):
            if endpoint.path:
                await loop.create_unix_connection(lambda: connection, endpoint.path)
                return
            implicit = self._target.tls == "implicit"
            await loop.create_connection(
                lambda: connection,
                endpoint.host,
                endpoint.port,
                ssl=await self._context() if implicit else None,
                server_hostname=endpoint.name if implicit else None,
            )

    async def _open(self, connection: HopConnection, endpoint: Endpoint) -> None:
        await connection.wait_opened()
        if connection.client.state is State.HANDSHAKE:
            try:
                await connection.start_tls(
                    await self._context(), endpoint.name or "localhost", OPENING_SECONDS
                )
            except OSError as error:
                raise _TlsFailedError(f"TLS: {_reason(error)}", UNTRUSTED) from None
            await connection.wait_opened()

    async def _context(self) -> ssl.SSLContext:
        """Return the TLS context; the first call reads the CA certificates in a thread."""
        if "tls_context" in vars(self._target):
            return self._target.tls_context
        return await asyncio.to_thread(getattr, self._target, "tls_context")


def _reason(error: OSError) -> str:
    """Return the text of an error without the address, which the log line has already."""
    if isinstance(error, ssl.SSLError):
        if error.reason == "WRONG_VERSION_NUMBER":
            return "no implicit TLS on this port (WRONG_VERSION_NUMBER): try tls=starttls"
        return getattr(error, "verify_message", "") or str(error.reason or error)
    if isinstance(error, socket.gaierror):
        return error.strerror or str(error)
    return os.strerror(error.errno) if error.errno else str(error) or type(error).__name__
