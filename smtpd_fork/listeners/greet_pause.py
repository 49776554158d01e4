"""GreetPause: clients that have to wait for the greeting; who talks before it is no mail server.

RFC 5321 3.1 and 4.3.1: a client waits for the greeting. What sends spam often does not, and gives
itself away in a second or two.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from smtpd_fork.gate import Refusal
from smtpd_fork.listeners.pending_clients import PendingClient, PendingClients

if TYPE_CHECKING:
    import asyncio

    from smtpd_fork.listeners.pending_clients import Refuse, Welcome

__all__ = ["GreetPause"]


class GreetPause(PendingClients):
    """Holds clients for so long, and lets those in who kept silent.

    :param seconds: how long
    :param welcome: takes who kept silent: listener, socket, peer, ticket
    :param refuse: answers who did not, and closes
    """

    def __init__(
        self,
        seconds: float,
        loop: asyncio.AbstractEventLoop,
        *,
        welcome: Welcome,
        refuse: Refuse,
    ) -> None:
        super().__init__("greet-pause", seconds, loop)
        self._welcome = welcome
        self._refuse = refuse

    def _heard(self, client: PendingClient) -> None:
        try:
            talks = bool(client.sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except BlockingIOError:
            return
        except OSError:
            talks = False
        self._let_go(client)
        if not talks:
            self._drop(client)
            return
        self._refuse(
            client.listener,
            client.sock,
            Refusal(
                "greet_pause",
                client.ticket.key or "unix",
                1,
                0,
                code=554,
                status="5.5.1",
                text="Wait for the greeting",
            ),
        )
        client.ticket.release()

    def _over(self, client: PendingClient) -> None:
        self._welcome(client.listener, client.sock, client.peer, client.ticket)
