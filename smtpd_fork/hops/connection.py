"""HopConnection: one connection to a next hop: a :class:`HopClient` on a transport."""

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
"""The hop has answered all that somebody waits for."""

QUIT_SECONDS = 2.0
"""How long a connection may take to end after QUIT."""


class Phase(Enum):
    """Where a connection is in its life; READY is the only one that is lent."""

    OPENING = auto()
    LENT = auto()
    RESETTING = auto()
    """It came back in the middle of a transaction, and RSET has not been answered."""
    READY = auto()
    CLOSED = auto()


class HopConnection(asyncio.Protocol):
    """A connection to a next hop, which carries out one order at a time.

    :param client: speaks the protocol
    :param server: which one it is, for the log
    :param changed: called when a connection that nobody waits for is ready, or has ended
    :ivar phase: where it is in its life; the pool changes it
    :ivar orders: that it carried out
    :ivar made_at: the loop's time when it was made
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

    # -- asyncio's calls ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = transport
        if self.phase is Phase.CLOSED:  # given up while it was made
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Take what the hop said."""
        self.client.receive(data)
        self._pump()
        self._notice()

    def eof_received(self) -> None:
        """Take note of the end; the transport closes."""
        self._end(f"{self.client.server} closed the connection")

    def connection_lost(self, exc: Exception | None) -> None:
        """Take note that nothing is left."""
        closed = f"{self.client.server} closed the connection"
        self._end(closed if exc is None else f"connection lost: {exc}")
        if not self._lost.done():
            self._lost.set_result(None)

    def pause_writing(self) -> None:
        """Send no further pieces: the hop is slow to read."""
        self._paused = True

    def resume_writing(self) -> None:
        """Go on sending."""
        self._paused = False
        self._pump()

    # -- what it does ------------------------------------------------------------------------------

    async def opened(self) -> None:
        """Wait until a transaction may begin, or TLS.

        :raises HopError: the hop refuses, or the connection ended
        """
        self._pump()
        await self._wait()
        if self.client.fault is not None:
            raise self.client.fault

    async def start_tls(self, context: Any, name: str, seconds: float) -> None:
        """Begin TLS; then it opens anew.

        :raises OSError: the handshake failed (``SSLError`` is one)
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
        """Carry out an order, until its result is in it, or the fault.

        :param order: such as :class:`smtpd_fork.hops.client.Order`
        :raises HopError: the hop answered nothing
        """
        client = self.client
        self.orders += 1
        client.begin(order)
        self._pump()
        await self._wait()
        if client.fault is not None:
            if not client.heard:
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
        """Send what is to be sent, as far as the hop reads."""
        take, transport = self.client.take, self._transport
        while not self._paused and (piece := take()):
            transport.write(piece)
            if len(piece) >= PIECE:
                self._loop.call_soon(self._pump)  # others have their turn
                return

    def _notice(self) -> None:
        """Tell those who wait, if all was answered."""
        if self.client.state not in _SETTLED:
            return
        if self._settled is not None:
            if not self._settled.done():
                self._settled.set_result(None)
        elif self.phase is Phase.RESETTING and self.client.state is State.READY:
            self._changed(self)
        if self.client.state is State.BROKEN:
            self._drop()

    # -- the end -----------------------------------------------------------------------------------

    def _end(self, reason: str) -> None:
        self.client.lose(reason)
        self._notice()

    def abort(self, reason: str) -> None:
        """End at once."""
        self._end(reason)

    def _drop(self) -> None:
        if self.phase is not Phase.CLOSED:
            self.phase = Phase.CLOSED
            if self._transport is not None:
                self._transport.abort()
            self._changed(self)

    def quit(self) -> None:
        """End as the protocol has it, without waiting for the answer."""
        if self.client.state is State.READY:
            self.client.lose("ended")
            if self.client.farewell:
                self._transport.write(self.client.farewell)
            self._transport.close()
            # With TLS it waits for the hop's close_notify, by default half a minute.
            self._loop.call_later(QUIT_SECONDS, self._transport.abort)
            self.phase = Phase.CLOSED
            self._changed(self)
        else:
            self.abort("ended")

    def cut(self) -> None:
        """End at once what :meth:`quit` could not end: the hop does not read."""
        if self._transport is not None:
            self._transport.abort()

    async def lost(self) -> None:
        """Wait until nothing is left of the connection."""
        if self._transport is not None:
            await asyncio.shield(self._lost)
