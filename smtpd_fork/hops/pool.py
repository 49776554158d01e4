"""Pool: the connections to one next hop, which all messages share.

A connection is lent to one message at a time, and only in the phase READY. A connection is closed
if its RSET was not answered with 250, or if the hop has sent an unexpected reply. While the hop is
down, one message every half second tries it, and all others fail immediately, until a connection
succeeds.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, TypeVar

from smtpd_fork.hops.connection import QUIT_SECONDS, HopConnection, Phase
from smtpd_fork.hops.dial import Dialler
from smtpd_fork.hops.errors import ConnectionLostError, HopDownError, HopError
from smtpd_fork.hops.hop_client import State
from smtpd_fork.hops.idle import Idle
from smtpd_fork.hops.waiting_messages import WaitingMessages

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from smtpd_fork.hops.target import Target

__all__ = ["Pool"]

Order = TypeVar("Order")

log = logging.getLogger("smtpd_fork.hops")

IDLE_SECONDS = 60.0
"""Seconds that an unused connection is kept; servers close theirs after some minutes."""

REUSE_SECONDS = 300.0
"""Seconds after which a connection is replaced, possibly by one to another server of the hop. Not a
limit of messages, because new connections are expensive for servers that start a process for each,
such as Dovecot."""

RESET_SECONDS = 10.0
"""Timeout of RSET; the connection is not lent before it is answered."""

RETRY_SECONDS = 0.5
"""Seconds between two attempts to reach a hop that is down, while there are messages for it."""

CLOSE_SECONDS = QUIT_SECONDS + 1.0
"""Seconds that close() waits for connections to end."""

BUSY = "451 4.3.2 The next mail server is busy, try again later"


class Pool:
    """The connections to a next hop.

    :param target: the hop
    :param limit: maximum connections
    :param wait: maximum seconds that a message waits for a connection
    :param name: our host name for EHLO
    :ivar down_since: seconds since the epoch; None while the hop answers
    :raises ConfigError: no DNS resolver is available for the target
    """

    def __init__(self, target: Target, limit: int, wait: float, *, name: str) -> None:
        self._target = target
        self._limit = limit
        self._wait_seconds = wait
        self._loop = asyncio.get_running_loop()
        self._dialler = Dialler(target, name, self._changed)
        self._open: set[HopConnection] = set()
        self._ready = Idle(IDLE_SECONDS, HopConnection.quit)
        self._waiting = WaitingMessages(self._return_unused)
        self._dialling = 0
        self._dial_at = 0.0  # no further connection is tried before this time of the loop
        self._closed = False
        self._error: HopError | None = None  # why it is down
        self.down_since: float | None = None

    @property
    def usable(self) -> bool:
        """Whether the event loop of the pool is still open."""
        return not self._loop.is_closed()

    @property
    def connections(self) -> int:
        """The number of open connections."""
        return len(self._open)

    @property
    def busy(self) -> int:
        """The number of connections that carry a message."""
        return sum(each.phase is Phase.LENT for each in self._open)

    @property
    def waiting(self) -> int:
        """The number of messages that wait for a connection."""
        return len(self._waiting)

    @property
    def reason(self) -> str:
        """Why the hop is down; empty while it answers."""
        return "" if self._error is None else self._error.reason

    # -- lending -----------------------------------------------------------------------------------

    async def carry_out(
        self,
        order_for: Callable[[HopConnection], Order | None],
        prepare: Callable[[HopConnection], Awaitable[None]] | None = None,
    ) -> Order | None:
        """Carry out an order; try again if a reused connection ends before the first reply.

        :param order_for: returns the order for a connection; None: nothing has to be sent
        :param prepare: prepares a connection for the order
        :raises HopError: there is no connection, or the hop answered nothing
        """
        fresh = False
        while True:
            connection = None if fresh else self.take_ready()
            if connection is None:
                connection = await self.lend(fresh=fresh)
            used = connection.orders > 0
            try:
                if prepare is not None:
                    await prepare(connection)
                order = order_for(connection)
                if order is not None:
                    await connection.carry_out(order)
            except ConnectionLostError:
                if fresh or not used:
                    raise
                fresh = True
            else:
                return order
            finally:
                self.give_back(connection)

    async def lend(self, *, fresh: bool = False) -> HopConnection:
        """Return a connection that is ready for a transaction; give it back in any case.

        :param fresh: prefer a new connection to one that was used before
        :raises HopError: no connection is available
        """
        until = self._loop.time() + self._wait_seconds
        while True:
            if not fresh and (connection := self.take_ready()) is not None:
                return connection
            if fresh:
                self._ready.end_all()  # one was dead without notice, so others may be
            if self._may_dial():
                try:
                    return await self._dial()
                except HopDownError:
                    raise
                except HopError:
                    if not self._has_connections:
                        raise
                    continue  # wait for one of the other connections
            got = await self._wait(until)
            if got is not None and got.phase is Phase.LENT:
                return got
            # Another connection may be made now, or this one has just ended: try again.

    @property
    def _has_connections(self) -> bool:
        """Whether there are open connections, or attempts to connect."""
        return bool(self._open or self._dialling)

    def take_ready(self) -> HopConnection | None:
        """Return a connection that is ready now, or None; give it back in any case."""
        while (connection := self._ready.take()) is not None:
            if connection.phase is Phase.READY:
                connection.phase = Phase.LENT
                return connection
        return None

    def _may_dial(self) -> bool:
        """Return whether another connection may be made now.

        :raises HopDownError: the hop is down, and another task tries it or has just tried it
        """
        now = self._loop.time()
        if self._error is not None and (self._dialling or now < self._dial_at):
            raise HopDownError(self._error.reason, self._error.reply)
        below_limit = len(self._open) + self._dialling < self._limit
        return below_limit and (now >= self._dial_at or not self._has_connections)

    async def _dial(self) -> HopConnection:
        self._dialling += 1
        try:
            connection = await self._dialler.dial()
        except HopError as error:
            self._dialling -= 1
            self._note_failure(error)
            raise
        except BaseException:
            self._dialling -= 1
            self._waiting.serve(None)  # another connection may be made
            raise
        self._dialling -= 1
        if self._closed:
            connection.abort("ended")
            raise HopError("the handler is closed")
        self._open.add(connection)
        connection.phase = Phase.LENT
        self._note_success()
        return connection

    async def _wait(self, until: float) -> HopConnection | None:
        """Wait for a connection that is given back; None: another one may be made."""
        try:
            return await self._waiting.wait(until)
        except TimeoutError:
            reason = f"all {self._limit} connections to {self._target} were busy"
            raise HopError(f"{reason} for {self._wait_seconds:g} seconds", BUSY) from None

    def _return_unused(self, connection: HopConnection | None) -> None:
        """Pass on what a cancelled message was given at the moment of its cancellation."""
        if connection is None:
            self._waiting.serve(None)
        else:
            self.give_back(connection)

    # -- giving back -------------------------------------------------------------------------------

    def give_back(self, connection: HopConnection) -> None:
        """Take a connection back, to lend it again or to close it."""
        if connection.phase is Phase.CLOSED:
            return
        state = connection.client.state
        if self._closed or self._loop.time() - connection.made_at >= REUSE_SECONDS:
            connection.quit()
        elif state is State.READY:
            self._make_ready(connection)
        elif state is State.RESET:
            connection.phase = Phase.RESETTING
            self._loop.call_later(RESET_SECONDS, self._check_reset, connection)
        else:
            connection.abort("given back in the middle of a transaction")

    def _check_reset(self, connection: HopConnection) -> None:
        if connection.phase is Phase.RESETTING:
            connection.abort("RSET was not answered")

    def _make_ready(self, connection: HopConnection) -> None:
        """Lend a connection to the next waiting message, or keep it as an idle one."""
        connection.phase = Phase.LENT
        if self._waiting.serve(connection):
            return
        connection.phase = Phase.READY
        self._ready.add(connection)

    def _changed(self, connection: HopConnection) -> None:
        """Handle a connection whose RSET was answered, or which has ended."""
        if connection.phase is Phase.RESETTING:
            self._make_ready(connection)
        elif connection in self._open:
            self._open.remove(connection)
            self._ready.discard(connection)
            self._waiting.serve(None)  # another connection may be made

    # -- outages -----------------------------------------------------------------------------------

    def _note_failure(self, error: HopError) -> None:
        """Record a failed attempt to connect: the hop is down unless there are connections."""
        self._dial_at = self._loop.time() + RETRY_SECONDS
        if self._has_connections:
            return
        if self._error is None:
            self.down_since = time.time()
            target = self._target
            log.warning(
                "the %s %s is down: %s; %s",
                *(target.kind, target, error.reason, target.while_down(error)),
            )
        self._error = error
        self._waiting.fail(error)

    def _note_success(self) -> None:
        """Record that the hop accepts connections."""
        self._dial_at = 0.0
        if self.down_since is not None:
            seconds = max(0.0, time.time() - self.down_since)
            self.down_since = self._error = None
            what = self._target.kind, self._target
            log.warning("the %s %s is up again, after %.0f s", *what, seconds)

    # -- closing -----------------------------------------------------------------------------------

    async def close(self) -> None:
        """Close all connections; those that carry a message are aborted."""
        self._closed = True
        connections = list(self._open)
        self._ready.end_all()
        for connection in connections:
            connection.quit()
        self._waiting.cancel()
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                for connection in connections:
                    await connection.wait_closed()
        except TimeoutError:
            for connection in connections:
                connection.abort_transport()
