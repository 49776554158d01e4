"""PendingClients: clients that have a ticket and no session yet.

A pending client uses its ticket and a file descriptor; it has no transport yet.
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
"""Receives a client that has passed, and owns it from then on."""

Refuse: TypeAlias = "Callable[[AcceptedClient, Refusal | Full], None]"
"""Answers a client that has not passed, and closes its socket."""


class PendingClient(AcceptedClient, eq=False):
    """A client that a stage holds, with the attributes that the ledger shows.

    :ivar stage: the stage
    :ivar header: the part of a PROXY header that was received
    """

    ticket: Ticket
    stage: PendingClients
    header: bytes = b""

    tls: ClassVar[bool] = False
    messages: ClassVar[int] = 0
    helo: ClassVar[str] = ""

    def __post_init__(self) -> None:
        """Register this object as the holder of the ticket."""
        self.ticket.holder = self
        self.ticket.listener = self.listener

    @property
    def phase(self) -> str:
        """The name of the stage."""
        return self.stage.phase

    def kick(self, reply: bytes) -> None:
        """Send *reply* and close (see :class:`smtpd_fork.gate.ledger.Holder`)."""
        self.stage.kick(self, reply)

    def reply_and_close(self, reply: bytes) -> None:
        """Send *reply*, if the client can read it, close, and release the ticket."""
        super().reply_and_close(reply)
        self.ticket.release()

    def close(self) -> None:
        """Close without a reply, and release the ticket."""
        self.sock.close()
        self.ticket.release()


class PendingClients(ABC):
    """A stage before the session: holds clients until they pass or are refused.

    :param begin: receives the clients that pass
    :param refuse: answers the clients that are refused
    """

    phase: ClassVar[str]
    """Name of the stage in the ledger."""

    _clients: Collection[PendingClient]

    def __init__(self, begin: Begin, refuse: Refuse) -> None:
        self._begin = begin
        self._refuse = refuse

    @abstractmethod
    def hold(self, client: AcceptedClient, ticket: Ticket) -> None:
        """Hold a client until it passes or is closed."""

    @abstractmethod
    def _remove(self, client: PendingClient) -> None:
        """Remove a client; the caller owns it from then on."""

    def __len__(self) -> int:
        return len(self._clients)

    def kick(self, client: PendingClient, reply: bytes) -> None:
        """Send *reply* to a client and close, if this stage still holds it."""
        if client in self._clients:
            self._remove(client)
            client.reply_and_close(reply)

    def stop(self, hostname: str) -> int:
        """Answer 421 to all clients, and return their number."""
        clients = list(self._clients)
        for client in clients:
            self.kick(client, shutdown_reply(hostname))
        return len(clients)


class WatchedClients(PendingClients):
    """Holds clients for a limited time, and reacts to data that they send meanwhile.

    :param seconds: the time limit, the same for all clients
    """

    def __init__(
        self, seconds: float, loop: asyncio.AbstractEventLoop, begin: Begin, refuse: Refuse
    ) -> None:
        super().__init__(begin, refuse)
        self._loop = loop
        self._clients: DeadlineQueue[PendingClient] = DeadlineQueue(seconds, loop, self._on_expired)

    def hold(self, client: AcceptedClient, ticket: Ticket) -> None:
        """Hold a client until it passes or is closed."""
        pending = PendingClient(client.listener, client.sock, client.peer, ticket, self)
        self._clients.add(pending)
        self._loop.add_reader(client.sock, self._on_readable, pending)

    def _remove(self, client: PendingClient) -> None:
        self._clients.pop(client, None)  # the queue removes a client whose time limit has passed
        self._loop.remove_reader(client.sock)

    def _on_expired(self, clients: list[PendingClient]) -> None:
        for client in clients:
            if not self._on_readable(client):  # data may have arrived in this iteration of the loop
                self._remove(client)
                self._on_timeout(client)

    @abstractmethod
    def _on_readable(self, client: PendingClient) -> bool:
        """Handle a client that has sent data or closed; return whether it was removed."""

    @abstractmethod
    def _on_timeout(self, client: PendingClient) -> None:
        """Handle a client whose time limit has passed; it was removed."""

    def stop(self, hostname: str) -> int:
        """Answer 421 to all clients, and return their number."""
        answered = super().stop(hostname)
        self._clients.clear()
        return answered
