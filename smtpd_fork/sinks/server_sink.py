"""ServerSink: hands messages to a server; how many at once, and whether the server is down."""

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
"""RFC 5321 4.5.3.1.10: the client sends the message to the others in another transaction."""
NOT_TAKEN = "451 4.3.0 The destination did not take the message, try again later"

RETRY_SECONDS = 0.5
"""Time between two attempts while the server is down: it is used again within a second."""

MARGIN_SECONDS = 1.0
"""The sink's own limits end first, as they know why."""


class NotDeliveredError(Exception):
    """The server did not take a message.

    :param reason: for the log
    :param reply: for the client
    """

    def __init__(self, reason: str, reply: str = NOT_TAKEN) -> None:
        super().__init__(reason)
        self.reply = reply


class ServerDownError(NotDeliveredError):
    """The server cannot be reached, or does not answer as it should."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, NOT_AVAILABLE)


class ServerSink(Sink):
    """A sink whose messages go to a server.

    While the server is down, one message in half a second is an attempt, and all others get 451 at
    once. The first success ends that.

    :param server: its name for the log, without a password
    :param timeout: seconds for one message, without the wait for a connection
    :param connections: messages that are on their way at once; others wait
    :param wait: seconds that a message waits for one of these; then the client gets 451
    """

    supports_binarymime = True
    log = logging.getLogger("smtpd_fork.sinks")

    def __init__(self, server: str, *, timeout: float, connections: int, wait: float) -> None:
        self.server = server
        self.timeout = timeout
        self.time_limit = timeout + wait + MARGIN_SECONDS
        self._most = connections
        self._wait = wait
        self._slots = Slots(connections)
        self._busy = self._waiting = 0
        self._outage = Outage()
        self._next_attempt = 0.0
        self._looked = False
        self._reporter = client_reporter()

    @property
    def destination(self) -> str:
        """Where messages go, for the log."""
        return self.server

    @property
    def status(self) -> PeerStatus:
        """What is known of the server."""
        counts = (self._busy, self._busy, self._waiting)
        return PeerStatus(*counts, self._outage.since, self._outage.reason)

    def check(self) -> None:
        """See whether the server is as it has to be; one that is down is not an error.

        :raises CannotCreateError: it is not
        """
        reason: object = f"no answer within {PROBE_SECONDS:g} s"
        try:
            probe_in_thread(self.look)
        except ServerDownError as error:
            reason = error
        except TimeoutError:
            pass
        else:
            return
        self.log.warning("%s: %s; messages get 451 until it answers", self.server, reason)

    def prepare(self) -> None:
        """See whether the server is as it has to be, as :meth:`check`; once is enough."""
        if not self._looked:
            self.check()
            self._looked = True

    async def look(self) -> None:
        """Look at the server's own settings, over a connection of its own.

        :raises ServerDownError: the server cannot be reached
        :raises CannotCreateError: its settings are not as they have to be
        """

    def distrust(self) -> None:
        """Take note that connections are doubtful: the server went down, or did not answer."""

    async def send(self, mail: Mail) -> str:
        """Hand a message to the server; return the reply 2yz.

        :raises ServerDownError: the server cannot be reached
        :raises NotDeliveredError: it did not take the message
        """
        raise NotImplementedError

    async def close(self) -> None:
        """Write the lines of the log that were gathered."""
        self._reporter.close()

    async def deliver(self, mail: Mail) -> Replies:
        """Hand a message to the server, when there is a connection."""
        try:
            async with self._slot():
                reply = await self._attempt(mail)
        except NotDeliveredError as error:
            self._report(error, mail)
            return error.reply
        if self.log.isEnabledFor(logging.INFO):
            self._tell(mail)
        return reply

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        """Wait for a connection.

        :raises NotDeliveredError: there is none in time, or the server is down
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
        reason = f"all {self._most} connections were in use for {self._wait:g} s"
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
            self._is_down(str(error))
            raise ServerDownError(str(error)) from None
        except NotDeliveredError:
            self._is_up()
            raise
        except TimeoutError:
            if not limit.expired():
                raise
            reason = f"no answer within {self.timeout:g} s"
            self._is_down(reason)
            raise ServerDownError(reason) from None
        except asyncio.CancelledError:
            self.distrust()  # a handler's limit may be shorter than the sink's
            raise
        except Exception as error:
            # Without a reply of ours aiosmtpd would answer 500, and the message would be lost.
            self.log.exception("[%s] not delivered to %s", mail.id, self.server)
            raise NotDeliveredError(f"unexpected {type(error).__name__}") from None
        self._is_up()
        return reply

    def _is_down(self, reason: str) -> None:
        self._next_attempt = time.monotonic() + RETRY_SECONDS
        self.distrust()
        if self._outage.begin(reason):
            self.log.warning("%s is down: %s; messages get 451", self.server, reason)

    def _is_up(self) -> None:
        if (seconds := self._outage.end()) is not None:
            self.log.warning("%s is up again, after %.0f s", self.server, seconds)

    def _report(self, error: NotDeliveredError, mail: Mail) -> None:
        """Log why a message was not delivered."""
        what, reason, peer = f"not delivered to {self.server}", str(error), mail.client.peer
        line = ClientLine.of(
            self.log, logging.WARNING, peer, what, reason, kind=error.reply[:3], **_fields(mail)
        )
        self._reporter.note(line)

    def _tell(self, mail: Mail) -> None:
        """Log that a message was delivered."""
        sender, client = ascii(mail.sender)[1:-1], describe(mail.client.peer)
        recipients, size = len(mail.recipients), len(mail.content)
        about = {"client": client, "from": sender, "to": recipients, "size": size}
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
