"""Put any asyncio protocol factory behind a gate, such as stock aiosmtpd's.

A first protocol asks the gate when a connection is made. If the client gets a ticket, it gets the
real protocol on the same transport, and the ticket is released when ``connection_lost`` of that
protocol is called. In two cases the loop does not call it:

- Stock aiosmtpd's STARTTLS puts the loop's TLS layer between transport and protocol. A handshake
  that is cut off by the command timeout ends without ``connection_lost``. Therefore the transports
  are checked every second.
- If a protocol raises an exception in ``connection_made``, the loop leaves the transport open.
  Therefore that exception is caught, and the transport is aborted.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, cast

from smtpd_fork.gate.reporter import Reporter
from smtpd_fork.gate.ticket import Ticket
from smtpd_fork.gate.verdict import Refusal
from smtpd_fork.peer_address import describe

if TYPE_CHECKING:
    from collections.abc import Callable

    from smtpd_fork.gate.gate import Gate
    from smtpd_fork.gate.verdict import Full

__all__ = ["wrapped"]

CHECK_SECONDS = 1.0
"""Interval of the check for transports that were closed without ``connection_lost``."""


def wrapped(
    factory: Callable[[], asyncio.BaseProtocol],
    *,
    gate: Gate,
    hostname: str | None,
) -> Callable[[], asyncio.BaseProtocol]:
    """Return a factory of protocols that ask *gate*, and are replaced by those of *factory*."""
    shared = _WrappedFactory(factory, gate, hostname or socket.gethostname())
    return lambda: _GateProtocol(shared)


class _WrappedFactory:
    """The state that the connections of one wrapped factory share."""

    def __init__(
        self,
        factory: Callable[[], asyncio.BaseProtocol],
        gate: Gate,
        hostname: str,
    ) -> None:
        self.factory = factory
        self.admit = gate.admit
        self._gate = gate
        self._reporter = Reporter(gate.refusals)
        self._hostname = hostname
        self._transports: dict[Ticket, asyncio.Transport] = {}
        self._timer: asyncio.TimerHandle | None = None

    def enter(self, ticket: Ticket, transport: asyncio.Transport) -> None:
        self._transports[ticket] = transport
        if self._timer is None:
            self._schedule_check()

    def leave(self, ticket: Ticket) -> None:
        self._transports.pop(ticket, None)
        ticket.release()
        if not self._transports and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _schedule_check(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(CHECK_SECONDS, self._check)

    def _check(self) -> None:
        self._timer = None
        gone = [
            ticket
            for ticket, transport in self._transports.items()
            # A closing transport that still has bytes to send is an open connection.
            if transport.is_closing() and not transport.get_write_buffer_size()
        ]
        for ticket in gone:
            self.leave(ticket)
        if self._transports:
            self._schedule_check()

    def ask_fleet(
        self, ticket: Ticket, transport: asyncio.Transport, protocol: asyncio.BaseProtocol
    ) -> None:
        """Ask the fleet, if the gate is in one; a client that it refuses is disconnected.

        The client is greeted before the answer, as the protocol cannot be delayed.
        """
        share = self._gate.slots.share
        if share is None:
            return

        def answered(refusal: Refusal | None) -> None:
            if refusal is None or transport.is_closing():
                return
            if transport.get_protocol() is protocol:
                self.refuse(transport, refusal)
            else:  # TLS has begun on this transport: no plaintext reply is possible
                transport.abort()

        refusal = share.ask(ticket, answered)
        if isinstance(refusal, Refusal):
            answered(refusal)

    def refuse(self, transport: asyncio.Transport, verdict: Refusal | Full) -> None:
        peer = transport.get_extra_info("peername")
        refusal = self._gate.refuse(verdict, client=describe(peer))
        transport.write(refusal.reply(self._hostname))
        transport.close()
        self._reporter.note(refusal)


class _GateProtocol(asyncio.Protocol):
    """The first protocol of a connection: asks the gate, then sets the real protocol."""

    def __init__(self, shared: _WrappedFactory) -> None:
        self._shared = shared

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        stream = cast("asyncio.Transport", transport)  # uvloop's class is not a subclass of it
        shared = self._shared
        verdict = shared.admit(transport.get_extra_info("peername"))
        if not isinstance(verdict, Ticket):
            shared.refuse(stream, verdict)
            return
        shared.enter(verdict, stream)
        try:
            protocol = shared.factory()
            _call_after_connection_lost(protocol, lambda: shared.leave(verdict))
            stream.set_protocol(protocol)
            protocol.connection_made(transport)
            shared.ask_fleet(verdict, stream, protocol)
        except BaseException:
            shared.leave(verdict)
            stream.abort()
            raise


def _call_after_connection_lost(protocol: asyncio.BaseProtocol, then: Callable[[], None]) -> None:
    """Make ``connection_lost`` of *protocol* call *then* at its end, even after an exception."""
    own_connection_lost = protocol.connection_lost

    def connection_lost(error: Exception | None) -> None:
        try:
            own_connection_lost(error)
        finally:
            # Break the reference cycle of this function and the protocol.
            getattr(protocol, "__dict__", {}).pop("connection_lost", None)
            then()

    try:
        # An instance attribute hides the method of the class; mypy knows only methods.
        protocol.connection_lost = connection_lost  # type: ignore[assignment, method-assign]  # meant
    except AttributeError:
        # The class has __slots__: replace the class of this instance by a subclass.
        cls = type(protocol)
        body = {"__slots__": (), "connection_lost": staticmethod(connection_lost)}
        protocol.__class__ = type(cls.__name__, (cls,), body)
