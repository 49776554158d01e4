"""Any asyncio protocol factory behind a gate, stock aiosmtpd's for one.

A thin first protocol asks the gate when the connection is made. A client with a ticket gets the
real protocol on the same transport, and the ticket is released when ``connection_lost`` of that
protocol is called. Two things can keep that call from coming, so the ticket does not depend on it
alone:

- stock aiosmtpd's STARTTLS puts the loop's TLS layer between transport and protocol, and a
  handshake that is cut by the command timeout ends without ``connection_lost``;
- a protocol that raises in ``connection_made`` is left on an open transport by the loop.

The second is caught where it happens; for the first, a sweep a second asks the transports.
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

__all__ = ["gated"]

SWEEP_SECONDS = 1.0
"""How often transports that closed without telling their protocol are looked for."""


def gated(
    factory: Callable[[], asyncio.BaseProtocol],
    *,
    gate: Gate,
    hostname: str | None,
) -> Callable[[], asyncio.BaseProtocol]:
    """Return a factory of protocols that ask *gate* before they hand over to *factory*'s."""
    shared = _Shared(factory, gate, hostname or socket.gethostname())
    return lambda: _GateProtocol(shared)


class _Shared:
    """What the connections of one wrapped factory share."""

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
        self._inside: dict[Ticket, asyncio.Transport] = {}
        self._sweep: asyncio.TimerHandle | None = None

    def enter(self, ticket: Ticket, transport: asyncio.Transport) -> None:
        self._inside[ticket] = transport
        if self._sweep is None:
            self._await_sweep()

    def leave(self, ticket: Ticket) -> None:
        self._inside.pop(ticket, None)
        ticket.release()
        if not self._inside and self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None

    def _await_sweep(self) -> None:
        loop = asyncio.get_running_loop()
        self._sweep = loop.call_later(SWEEP_SECONDS, self._sweep_out)

    def _sweep_out(self) -> None:
        self._sweep = None
        gone = [
            ticket
            for ticket, transport in self._inside.items()
            # A closing transport that has bytes to send still is a connection.
            if transport.is_closing() and not transport.get_write_buffer_size()
        ]
        for ticket in gone:
            self.leave(ticket)
        if self._inside:
            self._await_sweep()

    def ask_fleet(
        self, ticket: Ticket, transport: asyncio.Transport, protocol: asyncio.BaseProtocol
    ) -> None:
        """Ask the fleet of the gate, if it is in one; a client that it refuses is cut off.

        The client was greeted already: the protocol cannot wait.
        """
        share = self._gate.slots.share
        if share is None:
            return

        def answered(refusal: Refusal | None) -> None:
            if refusal is None or transport.is_closing():
                return
            if transport.get_protocol() is protocol:
                self.refuse(transport, refusal)
            else:  # under TLS by now: nothing can be said in between
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
    """The first protocol of a connection: asks the gate, then steps aside."""

    def __init__(self, shared: _Shared) -> None:
        self._shared = shared

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        stream = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it
        shared = self._shared
        verdict = shared.admit(transport.get_extra_info("peername"))
        if not isinstance(verdict, Ticket):
            shared.refuse(stream, verdict)
            return
        shared.enter(verdict, stream)
        try:
            protocol = shared.factory()
            _call_after_loss(protocol, lambda: shared.leave(verdict))
            stream.set_protocol(protocol)
            protocol.connection_made(transport)
            shared.ask_fleet(verdict, stream, protocol)
        except BaseException:
            shared.leave(verdict)
            stream.abort()
            raise


def _call_after_loss(protocol: asyncio.BaseProtocol, then: Callable[[], None]) -> None:
    """Have *then* called after the protocol's own ``connection_lost``, even if that raises."""
    own_connection_lost = protocol.connection_lost

    def connection_lost(error: Exception | None) -> None:
        try:
            own_connection_lost(error)
        finally:
            # This function refers to the protocol: without it the two would be garbage to collect.
            getattr(protocol, "__dict__", {}).pop("connection_lost", None)
            then()

    try:
        # The instance's own goes before its class's; mypy knows only methods.
        protocol.connection_lost = connection_lost  # type: ignore[assignment, method-assign]  # meant
    except AttributeError:
        # The class has __slots__: give this one instance a class of its own, of the same layout.
        cls = type(protocol)
        body = {"__slots__": (), "connection_lost": staticmethod(connection_lost)}
        protocol.__class__ = type(cls.__name__, (cls,), body)
