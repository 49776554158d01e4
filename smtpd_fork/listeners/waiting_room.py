"""WaitingRoom: clients that wait for a place at most so long (``--when-full defer:SECONDS``).

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

__all__ = ["Waiting", "WaitingRoom"]


@dataclass(frozen=True, slots=True, eq=False)
class Waiting:
    """One client that waits.

    :ivar since: by the room's clock, when it came
    """

    listener: Listener
    sock: socket.socket
    peer: SocketAddress | str
    since: float


class WaitingRoom:
    """A queue of clients, first come, first served; pure, the clock comes in as an argument.

    :param seconds: how long each may wait
    :param capacity: how many may wait; past it they stay in the kernel's backlog
    :ivar clients: who waits, the first of them first; to be looked at only
    """

    def __init__(self, seconds: float, capacity: int) -> None:
        self._seconds = seconds
        self._capacity = max(1, capacity)
        self.clients: deque[Waiting] = deque()

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

    def enter(
        self, listener: Listener, sock: socket.socket, peer: SocketAddress | str, now: float
    ) -> None:
        """Have a client wait, from *now*."""
        self.clients.append(Waiting(listener, sock, peer, now))

    def call_back(self, waiting: Waiting) -> None:
        """Have a client who was called wait on, before all others."""
        self.clients.appendleft(waiting)

    def call(self) -> Waiting | None:
        """Return the client who has waited longest, or None."""
        return self.clients.popleft() if self.clients else None

    def overdue(self, now: float) -> list[Waiting]:
        """Return the clients whose time is up; they no longer wait."""
        gone = []
        while self.clients and self.clients[0].since + self._seconds <= now:
            gone.append(self.clients.popleft())
        return gone

    @property
    def next_deadline(self) -> float | None:
        """When the next client's time is up, or None if nobody waits."""
        return self.clients[0].since + self._seconds if self.clients else None
