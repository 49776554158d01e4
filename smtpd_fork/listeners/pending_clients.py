"""PendingClients: clients that have a ticket and no session yet, each for so long and no longer.

All are held equally long, so they lie in the order of their deadlines, and one timer does for all.
A client that is held costs its ticket and a descriptor: there is no transport.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from typing import TYPE_CHECKING, TypeAlias

from smtpd_fork.gate.verdict import shutdown_reply
from smtpd_fork.listeners.refusals import refuse

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Callable

    from smtpd_fork.gate import Full, Refusal, Ticket
    from smtpd_fork.listeners.listener import Listener
    from smtpd_fork.net import SocketAddress

__all__ = ["PendingClient", "PendingClients", "Refuse", "Welcome"]

Welcome: TypeAlias = "Callable[[Listener, socket.socket, SocketAddress | str, Ticket], None]"
"""Takes a client that may go on: listener, socket, peer, ticket. It owns the last three."""

Refuse: TypeAlias = "Callable[[Listener, socket.socket, Refusal | Full], None]"
"""Answers a client that may not, and closes its socket."""


class PendingClient:
    """One client that is pending.

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
        stage: PendingClients,
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


class PendingClients(ABC):
    """Holds clients for a limited time.

    :param phase: what the ledger calls it
    :param seconds: how long, the same for all
    """

    def __init__(self, phase: str, seconds: float, loop: asyncio.AbstractEventLoop) -> None:
        self._phase = phase
        self._seconds = seconds
        self._loop = loop
        self._queue: deque[PendingClient] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return sum(not client.gone for client in self._queue)

    def hold(
        self, listener: Listener, sock: socket.socket, peer: SocketAddress | str, ticket: Ticket
    ) -> None:
        """Have a client wait; socket and ticket are this one's until it is let on or has gone."""
        deadline = self._loop.time() + self._seconds
        client = PendingClient(
            self, listener, sock, peer, ticket, phase=self._phase, deadline=deadline
        )
        ticket.holder = client
        ticket.listener = listener
        self._queue.append(client)
        self._loop.add_reader(sock, self._heard, client)
        if self._timer is None:
            self._timer = self._loop.call_at(deadline, self._due)

    @abstractmethod
    def _heard(self, client: PendingClient) -> None:
        """Act on a client that talks, or has gone."""

    @abstractmethod
    def _over(self, client: PendingClient) -> None:
        """Act on a client whose time is over."""

    def _let_go(self, client: PendingClient) -> None:
        """Hold a client no longer; socket and ticket are the caller's."""
        self._loop.remove_reader(client.sock)
        client.gone = True

    def _drop(self, client: PendingClient) -> None:
        """Close on a client that is no longer pending."""
        client.sock.close()
        client.ticket.release()

    def _due(self) -> None:
        self._timer = None
        now = self._loop.time()
        while self._queue and (self._queue[0].gone or self._queue[0].deadline <= now):
            client = self._queue.popleft()
            if not client.gone:
                self._heard(client)  # what came in this very turn
            if not client.gone:
                self._let_go(client)
                self._over(client)
        if self._queue:
            self._timer = self._loop.call_at(self._queue[0].deadline, self._due)

    def send_away(self, client: PendingClient, reply: bytes) -> None:
        """Answer a pending client with *reply*, and close."""
        self._let_go(client)
        # A client that speaks TLS first cannot read a reply in the clear.
        refuse(client.sock, b"" if client.listener.tls else reply)
        client.ticket.release()

    def stop(self, hostname: str) -> int:
        """Answer 421 to all; return how many there were."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        answered = 0
        for client in self._queue:
            if not client.gone:
                self.send_away(client, shutdown_reply(hostname))
                answered += 1
        self._queue.clear()
        return answered
