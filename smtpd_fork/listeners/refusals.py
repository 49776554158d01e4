"""Refusals: 421 or 554 on a raw socket, before any transport or TLS exists."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

from smtpd_fork.gate import Gate, Reporter
from smtpd_fork.listeners.common_address_warning import CommonAddressWarning

if TYPE_CHECKING:
    from collections.abc import Callable

    from smtpd_fork.gate import Full, Refusal, Ticket
    from smtpd_fork.listeners.listener import Listener

__all__ = ["Refuser", "Spare", "refuse"]

_NOW = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
_EARLY_BYTES = 4096
"""What an early talker may have sent already; read, as close(2) with unread bytes is a reset."""


def refuse(sock: socket.socket, reply: bytes) -> None:
    """Send *reply* on an accepted socket without ever waiting, and close it.

    A peer that is gone, or cannot take one line, has had its answer.
    """
    with suppress(OSError):
        sock.send(reply, _NOW)
        sock.recv(_EARLY_BYTES, _NOW)
    with suppress(OSError):
        sock.close()


class Spare:
    """A descriptor kept in reserve, to answer clients with when there are no others (EMFILE).

    Without it a client that the kernel has connected would hang unanswered until there are
    descriptors again; with it, it is told to come back.
    """

    def __init__(self) -> None:
        self._descriptor = self._open()

    def refuse(
        self, listening: socket.socket, answer: Callable[[socket.socket], None], at_most: int
    ) -> int:
        """Have up to *at_most* clients in the backlog of *listening* answered; return how many.

        :param answer: tells a client, and closes its socket
        """
        answered = 0
        while answered < at_most and self._descriptor is not None:
            os.close(self._descriptor)
            try:
                sock, _ = listening.accept()
            except OSError:
                self._descriptor = self._open()
                break
            answer(sock)
            answered += 1
            self._descriptor = self._open()
        if self._descriptor is None:
            self._descriptor = self._open()
        return answered

    def close(self) -> None:
        """Give the descriptor back."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    @staticmethod
    def _open() -> int | None:
        try:
            return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None  # somebody else was faster; the next refusal tries again


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

    def refuse(self, listener: Listener, sock: socket.socket, verdict: Refusal | Full) -> None:
        """Answer a client with *verdict*, and close its socket."""
        refusal = self.note(verdict)
        # A client that speaks TLS first cannot read a reply in the clear.
        refuse(sock, b"" if listener.tls else refusal.reply(self.hostname))

    def note(self, verdict: Refusal | Full) -> Refusal:
        """Count and log a refusal that somebody else sends; return it, with its id."""
        refusal = self._gate.refuse(verdict)
        self._reporter.note(refusal)
        self._common_address.note(refusal)
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
