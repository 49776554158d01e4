"""PendingClients: clients with a ticket and no session yet.

A pending client costs its ticket and a file descriptor: there is no transport yet.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from smtpd_fork.gate.verdict import shutdown_reply
from smtpd_fork.listeners.accepted_client import AcceptedClient
from smtpd_fork.listeners.deadline_queue import DeadlineQueue

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Collection

    from smtpd_fork.gate import Full, Refusal, Ticket

__all__ = ["Begin", "PendingClient", "PendingClients", "Refuse", "WatchedClients"]

Begin: TypeAlias = "Callable[[AcceptedClient, Ticket], None]"
"""Takes a client that has passed, which is no longer the caller's."""

Refuse: TypeAlias = "Callable[[AcceptedClient, Refusal | Full], None]"
"""Answers a client that has not passed, and closes its socket."""


class PendingClient(AcceptedClient, eq=False):
    """A client that a stage holds, and how the ledger shows it.

    :ivar stage: which one
    :ivar header: what has come of a PROXY header
    """

    ticket: Ticket
    stage: PendingClients
    header: bytes = b""

    tls: ClassVar[bool] = False
    messages: ClassVar[int] = 0
    helo: ClassVar[str] = ""

    def __post_init__(self) -> None:
        """Be what holds the ticket."""
        self.ticket.holder = self
        self.ticket.listener = self.listener

    @property
    def phase(self) -> str:
        """What it waits for."""
        return self.stage.phase

    def kick(self, reply: bytes) -> None:
        """End, with *reply* as the last word (see :class:`smtpd_fork.gate.ledger.Holder`)."""
        self.stage.kick(self, reply)

    def dismiss(self, reply: bytes) -> None:
        """Send *reply*, if the client can read it, close, and release the ticket."""
        super().dismiss(reply)
        self.ticket.release()

    def close(self) -> None:
        """Close without a reply, and release the ticket."""
        self.sock.close()
        self.ticket.release()


class PendingClients(ABC):
    """A stage before the session: holds clients until they pass, or do not.

    :param begin: takes those that pass
    :param refuse: answers those that do not
    """

    phase: ClassVar[str]
    """What the ledger calls it."""

    _clients: Collection[PendingClient]

    def __init__(self, begin: Begin, refuse: Refuse) -> None:
        self._begin = begin
        self._refuse = refuse

    @abstractmethod
    def hold(self, client: AcceptedClient, ticket: Ticket) -> None:
        """Hold a client until it passes, or is closed."""

    @abstractmethod
    def _let_go(self, client: PendingClient) -> None:
        """Hold a client no longer; it is the caller's."""

    def __len__(self) -> int:
        return len(self._clients)

    def kick(self, client: PendingClient, reply: bytes) -> None:
        """Answer a client with *reply*, and close; nothing if it is held no longer."""
        if client in self._clients:
            self._let_go(client)
            client.dismiss(reply)

    def stop(self, hostname: str) -> int:
        """Answer 421 to all; return how many there were."""
        clients = list(self._clients)
        for client in clients:
            self.kick(client, shutdown_reply(hostname))
        return len(clients)


class WatchedClients(PendingClients):
    """Holds clients for a limited time, and sees what they send meanwhile.

    :param seconds: how long, the same for all
    """

    def __init__(
        self, seconds: float, loop: asyncio.AbstractEventLoop, begin: Begin, refuse: Refuse
    ) -> None:
        super().__init__(begin, refuse)
        self._loop = loop
        self._clients: DeadlineQueue[PendingClient] = DeadlineQueue(seconds, loop, self._expired)

    def hold(self, client: AcceptedClient, ticket: Ticket) -> None:
        """Hold a client until it passes, or is closed."""
        pending = PendingClient(client.listener, client.sock, client.peer, ticket, self)
        self._clients.add(pending)
        self._loop.add_reader(client.sock, self._heard, pending)

    def _let_go(self, client: PendingClient) -> None:
        self._clients.pop(client, None)  # its time may be over
        self._loop.remove_reader(client.sock)

    def _expired(self, clients: list[PendingClient]) -> None:
        for client in clients:
            if not self._heard(client):  # what came in this very turn
                self._let_go(client)
                self._over(client)

    @abstractmethod
    def _heard(self, client: PendingClient) -> bool:
        """Act on a client that sends something, or has gone; return whether it was let go."""

    @abstractmethod
    def _over(self, client: PendingClient) -> None:
        """Act on a client whose time is over; it was let go."""

    def stop(self, hostname: str) -> int:
        """Answer 421 to all; return how many there were."""
        answered = super().stop(hostname)
        self._clients.clear()
        return answered
