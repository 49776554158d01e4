"""Refuser: tells clients that they are refused, and takes note of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smtpd_fork.gate import Gate, Reporter
from smtpd_fork.listeners.nat import NatWatch
from smtpd_fork.listeners.refuse import refuse

if TYPE_CHECKING:
    import socket

    from smtpd_fork.gate import Full, Refusal, Ticket
    from smtpd_fork.listeners.listener import Listener

__all__ = ["Refuser"]


class Refuser:
    """Answers the clients that a gate refuses; used from the thread of a running loop.

    :param gate: counts and explains its refusals
    :ivar hostname: names this host in the replies; may be set
    """

    def __init__(self, gate: Gate, hostname: str) -> None:
        self._gate = gate
        self.hostname = hostname
        self._reporter = Reporter(gate.refusals)
        self._nat = NatWatch(gate)

    def refuse(self, listener: Listener, sock: socket.socket, verdict: Refusal | Full) -> None:
        """Answer a client with *verdict*, and close its socket."""
        refusal = self.note(verdict)
        # A client that speaks TLS first cannot read a reply in the clear.
        refuse(sock, b"" if listener.tls else refusal.reply(self.hostname))

    def note(self, verdict: Refusal | Full) -> Refusal:
        """Count and log a refusal that somebody else sends; return it, with its id."""
        refusal = self._gate.refuse(verdict)
        self._reporter.note(refusal)
        self._nat.note(refusal)
        return refusal

    def begin_handshake(self, ticket: Ticket) -> Refusal | None:
        """Return why a client is not to begin a TLS handshake; it has been noted."""
        refusal = self._gate.begin_handshake(ticket)
        return None if refusal is None else self.note(refusal)

    def end_handshake(self, ticket: Ticket) -> None:
        """Take note that a handshake has succeeded."""
        self._gate.end_handshake(ticket)

    def close(self) -> None:
        """Write what is to be written of the refusals."""
        self._reporter.close()
