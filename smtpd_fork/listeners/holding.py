"""Holding: clients that have a ticket and no session yet, each for so long and no longer.

All are held equally long, so they lie in the order of their deadlines, and one timer does for all.
A client that is held costs its ticket and a descriptor: there is no transport.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from typing import TYPE_CHECKING, TypeAlias

from smtpd_fork.gate.verdict import shutdown_reply
from smtpd_fork.listeners.refuse import refuse

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Callable

    from smtpd_fork.gate import Full, Refusal, Ticket
    from smtpd_fork.listeners.listener import Listener
    from smtpd_fork.net import SocketAddress

__all__ = ["Held", "Holding", "Refuse", "Welcome"]

Welcome: TypeAlias = "Callable[[Listener, socket.socket, SocketAddress | str, Ticket], None]"
"""Takes a client that may go on: listener, socket, peer, ticket. It owns the last three."""

Refuse: TypeAlias = "Callable[[Listener, socket.socket, Refusal | Full], None]"
"""Answers a client that may not, and closes its socket."""


class Held:
    """One client that is held.

    :param stage: by whom
    """

    __slots__ = (
        *("deadline", "gone", "header", "listener", "peer", "phase", "sock", "stage"),
        "ticket",
    )

    tls = False
    messages = 0
    helo = ""

    def __init__(
        self,
        stage: Holding,
        listener: Listener,
        sock: socket.socket,
        peer: SocketAddress | str,
        ticket: Ticket,
        *,
        phase: str,
        deadline: float,
    ) -> None:
        self.stage = stage
        self.listener = listener
        self.sock = sock
        self.peer = peer
        self.ticket = ticket
        self.phase = phase
        self.deadline = deadline
        self.header = b""
        self.gone = False

    def kick(self, reply: bytes) -> None:
        """End, with *reply* as the last word (see :class:`smtpd_fork.gate.ledger.Holder`)."""
        if not self.gone:
            self.stage.send_away(self, reply)


class Holding(ABC):
    """Holds clients for so long.

    :param phase: what the ledger calls it
    :param seconds: how long, the same for all
    """

    def __init__(self, phase: str, seconds: float, loop: asyncio.AbstractEventLoop) -> None:
        self._phase = phase
        self._seconds = seconds
        self._loop = loop
        self._queue: deque[Held] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return sum(not held.gone for held in self._queue)

    def hold(
        self, listener: Listener, sock: socket.socket, peer: SocketAddress | str, ticket: Ticket
    ) -> None:
        """Have a client wait; socket and ticket are this one's until it is let on or has gone."""
        deadline = self._loop.time() + self._seconds
        held = Held(self, listener, sock, peer, ticket, phase=self._phase, deadline=deadline)
        ticket.holder = held
        ticket.listener = listener
        self._queue.append(held)
        self._loop.add_reader(sock, self._heard, held)
        if self._timer is None:
            self._timer = self._loop.call_at(deadline, self._due)

    @abstractmethod
    def _heard(self, held: Held) -> None:
        """Act on a client that talks, or has gone."""

    @abstractmethod
    def _over(self, held: Held) -> None:
        """Act on a client whose time is over."""

    def _let_go(self, held: Held) -> None:
        """Hold a client no longer; socket and ticket are the caller's."""
        self._loop.remove_reader(held.sock)
        held.gone = True

    def _drop(self, held: Held) -> None:
        """Close on a client that is held no longer."""
        held.sock.close()
        held.ticket.release()

    def _due(self) -> None:
        self._timer = None
        now = self._loop.time()
        while self._queue and (self._queue[0].gone or self._queue[0].deadline <= now):
            held = self._queue.popleft()
            if not held.gone:
                self._heard(held)  # what came in this very turn
            if not held.gone:
                self._let_go(held)
                self._over(held)
        if self._queue:
            self._timer = self._loop.call_at(self._queue[0].deadline, self._due)

    def send_away(self, held: Held, reply: bytes) -> None:
        """Answer a client that is held with *reply*, and close."""
        self._let_go(held)
        # A client that speaks TLS first cannot read a reply in the clear.
        refuse(held.sock, b"" if held.listener.tls else reply)
        held.ticket.release()

    def stop(self, hostname: str) -> int:
        """Answer 421 to all who are held; return how many there were."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        answered = 0
        for held in self._queue:
            if not held.gone:
                self.send_away(held, shutdown_reply(hostname))
                answered += 1
        self._queue.clear()
        return answered
