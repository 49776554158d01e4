"""GreetPause: clients wait for the greeting; one that talks before it is no mail server.

RFC 5321 3.1 and 4.3.1: a client waits for the greeting. What sends spam often does not, and gives
itself away in a second or two.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from smtpd_fork.gate import Refusal
from smtpd_fork.listeners.pending_clients import WatchedClients

if TYPE_CHECKING:
    from smtpd_fork.listeners.pending_clients import PendingClient

__all__ = ["GreetPause"]


class GreetPause(WatchedClients):
    """Holds clients for a few seconds; those that keep silent pass."""

    phase = "greet-pause"

    def _heard(self, client: PendingClient) -> bool:
        try:
            talks = bool(client.sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except BlockingIOError:
            return False
        except OSError:
            talks = False
        self._let_go(client)
        if talks:
            key, text = client.ticket.key or "unix", "Wait for the greeting"
            refusal = Refusal("greet_pause", key, 1, 0, code=554, status="5.5.1", text=text)
            self._refuse(client, refusal)
        else:
            client.close()
        return True

    def _over(self, client: PendingClient) -> None:
        self._begin(client, client.ticket)
