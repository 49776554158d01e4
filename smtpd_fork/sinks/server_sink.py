"""ServerSink: the base class of sinks that send messages to a server, with limits and outages."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from smtpd_fork.errors import CannotCreateError
from smtpd_fork.gate import ClientLine, client_reporter
from smtpd_fork.hops.peer_status import Outage, PeerStatus
from smtpd_fork.hops.probe import PROBE_SECONDS, probe_in_thread
from smtpd_fork.message import Mail, Replies
from smtpd_fork.peer_address import describe
from smtpd_fork.sinks.base import Sink
from smtpd_fork.sinks.slots import Slots

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["TOO_MANY", "NotDeliveredError", "ServerDownError", "ServerSink"]

NOT_AVAILABLE = "451 4.4.1 The destination is not available, try again later"
NO_CONNECTION = "451 4.3.2 All connections to the destination are in use, try again later"
TOO_MANY = "452 4.5.3 Too many recipients for one message, send it to the others next"
"""The client sends the message to the other recipients in another transaction (RFC 5321
4.5.3.1.10)."""
NOT_TAKEN = "451 4.3.0 The destination did not take the message, try again later"

RETRY_SECONDS = 0.5
"""Seconds between two attempts while the server is down, so that it is used again within a second.
"""

MARGIN_SECONDS = 1.0
"""Margin of the time limit of the whole delivery, so that the specific timeouts expire first and
report the reason."""


class NotDeliveredError(Exception):
    """The server did not accept a message.

    :param reason: the reason for the log
    :param reply: the reply to the client
    """

    def __init__(self, reason: str, reply: str = NOT_TAKEN) -> None:
        super().__init__(reason)
        self.reply = reply


class ServerDownError(NotDeliveredError):
    """The server cannot be reached, or violates the protocol."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, NOT_AVAILABLE)


class ServerSink(Sink):
    """A sink that sends messages to a server.

    While the server is down, one message every half second tries it, and all others get 451
    immediately. The first success ends the outage.

    :param server: the name of the server for the log, without a password
    :param timeout: seconds for one message, without the wait for a connection
    :param connections: maximum messages in progress; others wait
    :param wait: seconds that a message waits before it gets 451
    """

    supports_binarymime = True
    log = logging.getLogger("smtpd_fork.sinks")

    def __init__(self, server: str, *, timeout: float, connections: int, wait: float) -> None:
        self.server = server
        self.timeout = timeout
        self.time_limit = timeout + wait + MARGIN_SECONDS
        self._connections = connections
        self._wait = wait
        self._slots = Slots(connections)
        self._busy = self._waiting = 0
        self._outage = Outage()
        self._next_attempt = 0.0
        self._checked = False
        self._reporter = client_reporter()

    @property
    def destination(self) -> str:
        """The destination of messages, for the log."""
        return self.server

    @property
    def status(self) -> PeerStatus:
        """The state of the server."""
        counts = (self._busy, self._busy, self._waiting)
        return PeerStatus(*counts, self._outage.since, self._outage.reason)

    def check(self) -> None:
        """Check the settings of the server; log a warning if it is down.

        :raises CannotCreateError: the settings are not sufficient
        """
        reason: object = f"no answer within {PROBE_SECONDS:g} s"
        try:
            probe_in_thread(self.probe)
        except ServerDownError as error:
            reason = error
        except TimeoutError:
            pass
        else:
            return
        self.log.warning("%s: %s; messages get 451 until it answers", self.server, reason)

    def prepare(self) -> None:
        """Call :meth:`check` the first time; do nothing later."""
        if not self._checked:
            self.check()
            self._checked = True

    async def probe(self) -> None:
        """Check the settings of the server, over a separate connection.

        :raises ServerDownError: the server cannot be reached
        :raises CannotCreateError: the settings are not sufficient
        """

    def renew_connections(self) -> None:
        """Use new connections from now on; called if the server went down, or did not answer."""

    async def send(self, mail: Mail) -> str:
        """Send a message to the server; return the reply 2yz.

        :raises ServerDownError: the server cannot be reached
        :raises NotDeliveredError: the server did not accept the message
        """
        raise NotImplementedError

    async def close(self) -> None:
        """Write the pending log lines."""
        self._reporter.close()

    async def deliver(self, mail: Mail) -> Replies:
        """Send a message to the server when a connection is free."""
        try:
            async with self._slot():
                reply = await self._attempt(mail)
        except NotDeliveredError as error:
            self._report(error, mail)
            return error.reply
        if self.log.isEnabledFor(logging.INFO):
            self._log_delivery(mail)
        return reply

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        """Wait for a connection.

        :raises NotDeliveredError: no connection became free in time, or the server is down
        """
        await self._wait_for_slot()
        try:
            self._refuse_while_down()
            self._busy += 1
            try:
                yield
            finally:
                self._busy -= 1
        finally:
            self._slots.release()

    async def _wait_for_slot(self) -> None:
        self._waiting += 1
        try:
            free = await self._slots.acquire(0 if self._outage.since else self._wait)
        finally:
            self._waiting -= 1
        if free:
            return
        if self._outage.since:
            raise ServerDownError(self._outage.reason)
        reason = f"all {self._connections} connections were in use for {self._wait:g} s"
        raise NotDeliveredError(reason, NO_CONNECTION)

    def _refuse_while_down(self) -> None:
        if self._outage.since is None:
            return
        if time.monotonic() < self._next_attempt:
            raise ServerDownError(self._outage.reason)
        self._next_attempt = time.monotonic() + RETRY_SECONDS

    async def _attempt(self, mail: Mail) -> str:
        limit = asyncio.timeout(self.timeout)
        try:
            async with limit:
                reply = await self.send(mail)
        except (ServerDownError, CannotCreateError) as error:
            self._note_failure(str(error))
            raise ServerDownError(str(error)) from None
        except NotDeliveredError:
            self._note_success()
            raise
        except TimeoutError:
            if not limit.expired():
                raise
            reason = f"no answer within {self.timeout:g} s"
            self._note_failure(reason)
            raise ServerDownError(reason) from None
        except asyncio.CancelledError:
            self.renew_connections()  # --handler-timeout may be shorter than our timeout
            raise
        except Exception as error:
            # Without this aiosmtpd would answer 500, and the message would be lost.
            self.log.exception("[%s] not delivered to %s", mail.id, self.server)
            raise NotDeliveredError(f"unexpected {type(error).__name__}") from None
        self._note_success()
        return reply

    def _note_failure(self, reason: str) -> None:
        self._next_attempt = time.monotonic() + RETRY_SECONDS
        self.renew_connections()
        if self._outage.begin(reason):
            self.log.warning("%s is down: %s; messages get 451", self.server, reason)

    def _note_success(self) -> None:
        if (seconds := self._outage.end()) is not None:
            self.log.warning("%s is up again, after %.0f s", self.server, seconds)

    def _report(self, error: NotDeliveredError, mail: Mail) -> None:
        """Log why a message was not delivered."""
        what, reason, peer = f"not delivered to {self.server}", str(error), mail.client.peer
        line = ClientLine.of(
            self.log, logging.WARNING, peer, what, reason, kind=error.reply[:3], **_fields(mail)
        )
        self._reporter.note(line)

    def _log_delivery(self, mail: Mail) -> None:
        """Log that a message was delivered."""
        sender, client = ascii(mail.sender)[1:-1], describe(mail.client.peer)
        recipients, size = len(mail.recipients), len(mail.content)
        about = {"client": client, "from": sender, "to": recipients, "size": size}
        about["server"] = self.server
        self.log.info(
            "[%s] delivered to %s: from=<%s> to=%d size=%d client=%s%s",
            *(mail.id, self.server, sender, recipients, size, client, mail.log_words),
            extra={**_fields(mail), **about, **mail.log_facts},
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.server}>"


def _fields(mail: Mail) -> dict[str, str]:
    """Return the fields of a log entry about a message."""
    session = mail.id.rpartition("-")[0]
    return {"session": session, "queue_id": mail.id} if session else {"queue_id": mail.id}
