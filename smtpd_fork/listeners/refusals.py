"""Refusals: send 421 or 554 on an accepted socket, before a transport or TLS exists."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING

from smtpd_fork.gate import Gate, Reporter
from smtpd_fork.listeners.common_address_warning import CommonAddressWarning
from smtpd_fork.peer_address import describe

if TYPE_CHECKING:
    from smtpd_fork.gate import Full, Refusal, Ticket
    from smtpd_fork.listeners.accepted_client import AcceptedClient
    from smtpd_fork.peer_address import Peer

__all__ = ["Refuser", "refuse"]

_NOW = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
_EARLY_BYTES = 4096
"""Bytes to read from a client that has sent data before the greeting: close(2) with unread data
would reset the connection, and the client would lose the reply."""


def refuse(sock: socket.socket, reply: bytes) -> None:
    """Send *reply* on an accepted socket without blocking, and close it.

    Errors are ignored: the client may have disconnected.
    """
    with suppress(OSError):
        sock.send(reply, _NOW)
        sock.recv(_EARLY_BYTES, _NOW)
    with suppress(OSError):
        sock.close()


class Refuser:
    """Answers the clients that a gate refuses; used in the thread of a running event loop.

    :param gate: counts and explains its refusals
    :ivar hostname: name of this host in replies; may be set at any time
    """

    def __init__(self, gate: Gate, hostname: str) -> None:
        self._gate = gate
        self.hostname = hostname
        self._reporter = Reporter(gate.refusals)
        self._common_address = CommonAddressWarning(gate)

    def refuse(self, client: AcceptedClient, verdict: Refusal | Full) -> None:
        """Send the reply of *verdict* to a client, and close its socket."""
        client.reply_and_close(self.note(verdict, client.peer).reply(self.hostname))

    def note(self, verdict: Refusal | Full, peer: Peer, session: str = "") -> Refusal:
        """Count and log a refusal, and return it with its id; the caller sends the reply."""
        refusal = self._gate.refuse(verdict, client=describe(peer), session=session)
        self._reporter.note(refusal)
        self._common_address.note(refusal)
        return refusal

    def begin_handshake(self, ticket: Ticket) -> Refusal | None:
        """Return None if a client may begin a TLS handshake, else a counted and logged refusal."""
        refusal = self._gate.begin_handshake(ticket)
        return None if refusal is None else self.note(refusal, ticket.peer, ticket.name())

    def end_handshake(self, ticket: Ticket) -> None:
        """Report a successful handshake to the gate."""
        self._gate.end_handshake(ticket)

    def close(self) -> None:
        """Log the summary of refusals that were not logged yet."""
        self._reporter.close()
