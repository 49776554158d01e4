"""Refusals: 421 or 554 on a socket, before there is a transport or TLS."""

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
"""What an early talker may have sent already; read, as close(2) with unread bytes is a reset."""


def refuse(sock: socket.socket, reply: bytes) -> None:
    """Send *reply* on an accepted socket without ever waiting, and close it.

    A peer that is gone, or cannot take one line, gets none.
    """
    with suppress(OSError):
        sock.send(reply, _NOW)
        sock.recv(_EARLY_BYTES, _NOW)
    with suppress(OSError):
        sock.close()


class Refuser:
    """Answers the clients that a gate refuses; used from the thread of a running loop.

    :param gate: counts and explains its refusals
    :ivar hostname: names this host in the replies; may be set
    """

    def __init__(self, gate: Gate, hostname: str) -> None:
        self._gate = gate
        self.hostname = hostname
        self._reporter = Reporter(gate.refusals)
        self._common_address = CommonAddressWarning(gate)

    def refuse(self, client: AcceptedClient, verdict: Refusal | Full) -> None:
        """Answer a client with *verdict*, and close its socket."""
        client.dismiss(self.note(verdict, client.peer).reply(self.hostname))

    def note(self, verdict: Refusal | Full, peer: Peer, session: str = "") -> Refusal:
        """Count and log a refusal that another module sends; return it, with its id."""
        refusal = self._gate.refuse(verdict, client=describe(peer), session=session)
        self._reporter.note(refusal)
        self._common_address.note(refusal)
        return refusal

    def begin_handshake(self, ticket: Ticket) -> Refusal | None:
        """Return why a client may not begin a TLS handshake; it has been counted and logged."""
        refusal = self._gate.begin_handshake(ticket)
        return None if refusal is None else self.note(refusal, ticket.peer, ticket.name())

    def end_handshake(self, ticket: Ticket) -> None:
        """Take note that a handshake has succeeded."""
        self._gate.end_handshake(ticket)

    def close(self) -> None:
        """Write what is to be written of the refusals."""
        self._reporter.close()
