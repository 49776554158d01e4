"""FleetChecks: clients wait for the fleet's answer about them, usually less than a millisecond."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from smtpd_fork.gate import Refusal
from smtpd_fork.listeners.pending_clients import PendingClient, PendingClients

if TYPE_CHECKING:
    from smtpd_fork.fleet import Fleet
    from smtpd_fork.fleet.question import Question
    from smtpd_fork.gate import Gate, Ticket
    from smtpd_fork.listeners.accepted_client import AcceptedClient
    from smtpd_fork.listeners.pending_clients import Begin, Refuse

__all__ = ["FleetChecks"]


class FleetChecks(PendingClients):
    """Holds clients until the fleet has answered.

    :param fleet: answers whether the limits of the fleet admit a client
    :param gate: has admitted the clients, and counts a client back that the fleet refuses
    """

    phase = "fleet"

    def __init__(self, fleet: Fleet, gate: Gate, begin: Begin, refuse: Refuse) -> None:
        super().__init__(begin, refuse)
        self._fleet = fleet
        self._gate = gate
        self._clients: dict[PendingClient, Question] = {}

    def hold(self, client: AcceptedClient, ticket: Ticket) -> None:
        """Hold a client until the fleet has answered; pass it on if the fleet is out of reach."""
        pending = PendingClient(client.listener, client.sock, client.peer, ticket, self)
        asked = self._fleet.ask(ticket, partial(self._answered, pending))
        if asked is None:
            self._begin(client, ticket)
        elif isinstance(asked, Refusal):
            self._refuse_client(pending, asked)
        else:
            self._clients[pending] = asked

    async def judge(self, ticket: Ticket) -> Refusal | None:
        """Query the fleet about the client of a session; return its refusal, or None."""
        answer: asyncio.Future[Refusal | None] = asyncio.get_running_loop().create_future()
        asked = self._fleet.ask(ticket, partial(_answer, answer))
        if asked is None or isinstance(asked, Refusal):
            refusal = asked
        else:
            try:
                refusal = await answer
            except asyncio.CancelledError:
                self._fleet.cancel(asked)
                raise
        if refusal is not None:
            self._gate.take_back(ticket)
        return refusal

    def _answered(self, client: PendingClient, refusal: Refusal | None) -> None:
        del self._clients[client]
        if refusal is None:
            self._begin(client, client.ticket)
        else:
            self._refuse_client(client, refusal)

    def _refuse_client(self, client: PendingClient, refusal: Refusal) -> None:
        self._gate.take_back(client.ticket)
        self._refuse(client, refusal)

    def _remove(self, client: PendingClient) -> None:
        self._fleet.cancel(self._clients.pop(client))


def _answer(future: asyncio.Future[Refusal | None], refusal: Refusal | None) -> None:
    if not future.done():
        future.set_result(refusal)
