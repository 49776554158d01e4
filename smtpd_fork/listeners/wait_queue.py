"""WaitQueue: clients that wait for a connection slot (``--when-full defer:SECONDS``).

Plain ``defer`` leaves clients in the kernel's backlog, which does not tell how long each has
been there. To refuse each one when its own time is up, they are accepted and kept here: a bare
descriptor and a deadline, neither counted nor served.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket

    from smtpd_fork.listeners.listener import Listener
    from smtpd_fork.net import SocketAddress

__all__ = ["WaitQueue", "WaitingClient"]


@dataclass(frozen=True, slots=True, eq=False)
class WaitingClient:
    """One client that waits.

    :ivar since: when it came, by the caller's clock
    """

    listener: Listener
    sock: socket.socket
    peer: SocketAddress | str
    since: float


class WaitQueue:
    """A queue of clients, first come, first served; pure, the clock comes in as an argument.

    :param seconds: how long each may wait
    :param capacity: how many may wait; past it they stay in the kernel's backlog
    :ivar clients: who waits, the first of them first; to be looked at only
    """

    def __init__(self, seconds: float, capacity: int) -> None:
        self._seconds = seconds
        self._capacity = max(1, capacity)
        self.clients: deque[WaitingClient] = deque()

    def change(self, seconds: float, capacity: int) -> None:
        """Have other limits hold, also for those who wait already."""
        self._seconds = seconds
        self._capacity = max(1, capacity)

    def __len__(self) -> int:
        return len(self.clients)

    @property
    def has_space(self) -> bool:
        """Whether one more may wait."""
        return len(self.clients) < self._capacity

    def add(
        self, listener: Listener, sock: socket.socket, peer: SocketAddress | str, now: float
    ) -> None:
        """Queue a client, from *now*."""
        self.clients.append(WaitingClient(listener, sock, peer, now))

    def put_back(self, waiting: WaitingClient) -> None:
        """Queue a client again, before all others."""
        self.clients.appendleft(waiting)

    def pop(self) -> WaitingClient | None:
        """Return the client that has waited longest, or None."""
        return self.clients.popleft() if self.clients else None

    def pop_overdue(self, now: float) -> list[WaitingClient]:
        """Remove and return the clients whose time is up."""
        gone = []
        while self.clients and self.clients[0].since + self._seconds <= now:
            gone.append(self.clients.popleft())
        return gone

    @property
    def next_deadline(self) -> float | None:
        """When the next client's time is up, or None if nobody waits."""
        return self.clients[0].since + self._seconds if self.clients else None
