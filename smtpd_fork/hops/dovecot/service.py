"""DovecotService: Dovecot's authentication service, with one connection for all sessions.

The connection is made on demand. After a failure the service is not tried again for each client.
After a reload of Dovecot its old process serves existing connections with the old settings, so a
connection is replaced after a minute.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from smtpd_fork.hops.dovecot.connection import (
    DovecotBusyError,
    DovecotConnection,
    DovecotDownError,
    DovecotLostError,
)
from smtpd_fork.hops.dovecot.conversation import LONGEST_REQUEST, begin, respond
from smtpd_fork.hops.peer_status import Outage, PeerStatus

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from smtpd_fork.hops.address import HopAddress
    from smtpd_fork.hops.dovecot.conversation import Answer, Mechanism

__all__ = ["DovecotRequest", "DovecotService", "RequestTooLongError"]

log = logging.getLogger("smtpd_fork.auth")

RETRY_SECONDS = 1.0
"""Seconds between two attempts to connect."""

FRESH_SECONDS = 60.0
"""Seconds during which new requests use the same connection."""


class RequestTooLongError(ValueError):
    """The response of a client is longer than Dovecot's limit."""


class DovecotRequest:
    """A request to authenticate a client.

    :ivar answer: the last answer of the service
    """

    def __init__(self, connection: DovecotConnection, service: DovecotService) -> None:
        self._connection = connection
        self._service = service
        self._number = connection.number()
        self.answer: Answer

    async def begin(
        self, mechanism: str, parameters: Mapping[str, str], response: bytes | None
    ) -> None:
        """Begin the request; for the parameters see :meth:`DovecotService.begin`."""
        await self._ask(begin(self._number, mechanism, parameters, response))

    async def respond(self, response: bytes) -> None:
        """Send the client's response to the challenge, and wait for the answer.

        :raises RequestTooLongError: *response* is too long
        :raises DovecotDownError: no answer was received
        """
        await self._ask(respond(self._number, response))

    async def _ask(self, line: bytes) -> None:
        if len(line) > LONGEST_REQUEST:
            self.cancel()
            raise RequestTooLongError
        try:
            self.answer = await self._connection.ask(
                self._number, line, self._service.answer_seconds
            )
        except (DovecotBusyError, DovecotLostError):
            raise  # the service may be up: the next connection will show it
        except DovecotDownError as error:
            self._service.note_down(str(error))
            raise
        self._service.note_up()

    def cancel(self) -> None:
        """Cancel the request."""
        self._connection.cancel(self._number)


class DovecotService:
    """The authentication service at an address.

    :param connect_seconds: timeout of connecting and of receiving the list of mechanisms
    :param answer_seconds: timeout of an answer
    :ivar mechanisms: the last known mechanisms of the service; empty if it was never reached
    """

    def __init__(
        self, address: HopAddress, *, connect_seconds: float, answer_seconds: float
    ) -> None:
        self.address = address
        self.mechanisms: Sequence[Mechanism] = ()
        self._connect_seconds = connect_seconds
        self.answer_seconds = answer_seconds
        self._outage = Outage()
        self._connection: DovecotConnection | None = None
        self._connecting: asyncio.Task[DovecotConnection] | None = None
        self._fresh: asyncio.TimerHandle | None = None  # retires the connection
        self._retry_at = 0.0

    @property
    def status(self) -> PeerStatus:
        """The state of the service."""
        connection, outage = self._connection, self._outage
        if connection is None or connection.down:
            return PeerStatus(down_since=outage.since, reason=outage.reason)
        return PeerStatus(1, int(connection.busy), 0, outage.since, outage.reason)

    def note_down(self, reason: str) -> None:
        """Note that the service does not answer."""
        if self._outage.begin(reason):
            log.warning("Dovecot %s is down: %s", self.address, reason)

    def note_up(self) -> None:
        """Note that the service answers."""
        if (seconds := self._outage.end()) is not None:
            log.warning("Dovecot %s is up again, after %.0f s", self.address, seconds)

    async def connection(self) -> DovecotConnection:
        """Return the connection; concurrent callers share one attempt to make it.

        :raises DovecotDownError: the service cannot be reached
        """
        connection, loop = self._connection, asyncio.get_running_loop()
        if connection is not None and connection.loop is loop and not connection.retired:
            return connection
        if self._connecting is None:
            if loop.time() < self._retry_at:
                raise DovecotDownError(self._outage.reason)
            self._connecting = loop.create_task(self._connect())
            self._connecting.add_done_callback(self._connected)
        return await asyncio.shield(self._connecting)

    async def _connect(self) -> DovecotConnection:
        return await DovecotConnection.to(self.address, self._connect_seconds)

    def _connected(self, task: asyncio.Task[DovecotConnection]) -> None:
        self._connecting = None
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            self.note_down(str(error))
            self._retry_at = task.get_loop().time() + RETRY_SECONDS
        else:
            self._connection = task.result()
            self._cancel_timer()
            self._fresh = task.get_loop().call_later(FRESH_SECONDS, self._connection.retire)
            self.mechanisms = tuple(self._connection.conversation.mechanisms)
            self._retry_at = 0.0
            self.note_up()

    async def begin(
        self, mechanism: str, parameters: Mapping[str, str], response: bytes | None
    ) -> DovecotRequest | None:
        """Begin a request; return None if the service does not offer the mechanism (any more).

        :param parameters: the parameters of Dovecot's AUTH, by name
        :param response: the client's initial response; None if it sent none
        :raises RequestTooLongError: *response* is too long
        :raises DovecotDownError: no answer was received
        """
        try:
            return await self._begin(mechanism, parameters, response)
        except DovecotLostError:
            # Dovecot was probably restarted. It has not answered, so the request can be repeated.
            pass
        try:
            return await self._begin(mechanism, parameters, response)
        except DovecotLostError as error:
            self.note_down(str(error))
            raise

    async def _begin(
        self, mechanism: str, parameters: Mapping[str, str], response: bytes | None
    ) -> DovecotRequest | None:
        connection = await self.connection()
        names = {each.name for each in connection.conversation.mechanisms}
        if mechanism not in names:  # Dovecot would close the connection
            return None
        request = DovecotRequest(connection, self)
        await request.begin(mechanism, parameters, response)
        return request

    async def close(self) -> None:
        """Close the connection."""
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])
        self._cancel_timer()
        if self._connection is not None:
            self._connection.fail("closed")

    def _cancel_timer(self) -> None:
        if self._fresh is not None:
            self._fresh.cancel()
