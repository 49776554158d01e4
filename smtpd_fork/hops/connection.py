"""HopConnection: a connection to a next hop: a :class:`HopClient` on a transport."""

from __future__ import annotations

import asyncio
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

from smtpd_fork.hops.content import PIECE
from smtpd_fork.hops.hop_client import State

if TYPE_CHECKING:
    from collections.abc import Callable

    from smtpd_fork.hops.hop_client import HopClient

__all__ = ["QUIT_SECONDS", "HopConnection", "Phase"]

_SETTLED = frozenset({State.READY, State.HANDSHAKE, State.RESET, State.BROKEN})
"""States in which no task has to wait for the server."""

QUIT_SECONDS = 2.0
"""Seconds after QUIT until a connection is closed without waiting further."""


class Phase(Enum):
    """The phase of a connection in a pool; only a READY one is lent."""

    OPENING = auto()
    LENT = auto()
    RESETTING = auto()
    """Given back after an unfinished transaction; RSET has not been answered yet."""
    READY = auto()
    CLOSED = auto()


class HopConnection(asyncio.Protocol):
    """A connection to a next hop, which carries out one order at a time.

    :param client: the state of the protocol
    :param server: the name of the server for the log
    :param changed: called when RSET of a returned connection is answered, or a connection has ended
    :ivar phase: the phase of the connection; the pool changes it
    :ivar orders: number of orders that were begun
    :ivar made_at: when the connection was made, in the time of the loop
    """

    def __init__(
        self, client: HopClient, server: str, changed: Callable[[HopConnection], None]
    ) -> None:
        self.client = client
        self.server = server
        self.phase = Phase.OPENING
        self.orders = 0
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self.made_at = self._loop.time()
        self._paused = False
        self._settled: asyncio.Future[None] | None = None
        self._lost = self._loop.create_future()
        self._transport: Any = None

    # -- callbacks of asyncio ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the transport."""
        self._transport = transport
        if self.phase is Phase.CLOSED:  # aborted while it was connecting
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Handle the server's replies."""
        self.client.receive(data)
        self._pump()
        self._wake()

    def eof_received(self) -> None:
        """Fail the client; the transport closes afterwards."""
        self._end(f"{self.client.server} closed the connection")

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the client, and wake the tasks in :meth:`wait_closed`."""
        closed = f"{self.client.server} closed the connection"
        self._end(closed if exc is None else f"connection lost: {exc}")
        if not self._lost.done():
            self._lost.set_result(None)

    def pause_writing(self) -> None:
        """Stop sending: the server reads slowly."""
        self._paused = True

    def resume_writing(self) -> None:
        """Continue sending."""
        self._paused = False
        self._pump()

    # -- operations --------------------------------------------------------------------------------

    async def wait_opened(self) -> None:
        """Wait until a transaction or the TLS handshake may begin.

        :raises HopError: the server refuses, or the connection ended
        """
        self._pump()
        await self._wait()
        if self.client.fault is not None:
            raise self.client.fault

    async def start_tls(self, context: Any, name: str, seconds: float) -> None:
        """Do the TLS handshake, and begin the session again.

        :raises OSError: the handshake failed (also as ``SSLError``)
        """
        self._transport = await self._loop.start_tls(
            self._transport,
            self,
            context,
            server_hostname=name,
            ssl_handshake_timeout=seconds,
        )
        self.client.encrypted()
        self._pump()

    async def carry_out(self, order: Any) -> None:
        """Carry out an order; afterwards it has the result, or the attribute ``fault``.

        :param order: for example a :class:`smtpd_fork.hops.client.Order`
        :raises HopError: the connection failed before the server answered anything
        """
        client = self.client
        self.orders += 1
        client.begin(order)
        self._pump()
        await self._wait()
        if client.fault is not None:
            if not client.has_answered:
                raise client.fault
            order.fault = client.fault

    async def _wait(self) -> None:
        if self.client.state in _SETTLED:
            return
        self._settled = self._loop.create_future()
        try:
            await self._settled
        except asyncio.CancelledError:
            self.abort("given up")
            raise
        finally:
            self._settled = None

    def _pump(self) -> None:
        """Write the client's output until the transport pauses writing."""
        next_piece, transport = self.client.data_to_send, self._transport
        while not self._paused and (piece := next_piece()):
            transport.write(piece)
            if len(piece) >= PIECE:
                self._loop.call_soon(self._pump)  # yield to other callbacks of the loop
                return

    def _wake(self) -> None:
        """Wake the waiting task if the client has settled; drop a broken connection."""
        if self.client.state not in _SETTLED:
            return
        if self._settled is not None:
            if not self._settled.done():
                self._settled.set_result(None)
        elif self.phase is Phase.RESETTING and self.client.state is State.READY:
            self._changed(self)
        if self.client.state is State.BROKEN:
            self._drop()

    # -- closing -----------------------------------------------------------------------------------

    def _end(self, reason: str) -> None:
        self.client.fail(reason)
        self._wake()

    def abort(self, reason: str) -> None:
        """Close the connection immediately."""
        self._end(reason)

    def _drop(self) -> None:
        if self.phase is not Phase.CLOSED:
            self.phase = Phase.CLOSED
            if self._transport is not None:
                self._transport.abort()
            self._changed(self)

    def quit(self) -> None:
        """Send QUIT and close the connection, without waiting for the reply."""
        if self.client.state is State.READY:
            self.client.fail("ended")
            if self.client.farewell:
                self._transport.write(self.client.farewell)
            self._transport.close()
            # With TLS, close() waits for the server's close_notify, by default 30 seconds.
            self._loop.call_later(QUIT_SECONDS, self._transport.abort)
            self.phase = Phase.CLOSED
            self._changed(self)
        else:
            self.abort("ended")

    def abort_transport(self) -> None:
        """Abort the transport, if :meth:`quit` did not end it: the server does not read."""
        if self._transport is not None:
            self._transport.abort()

    async def wait_closed(self) -> None:
        """Wait until the transport is closed."""
        if self._transport is not None:
            await asyncio.shield(self._lost)
